// What the platform is for: the token inside, the real value at the API, the token in the echo.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { check, eventually, plain } from "./harness.mjs";

const [API, OTHER, BLOCKED] = process.env.OC_STANDIN_HOSTS.split(",");
const PORT = process.env.OC_STANDIN_PORT;
const TOKEN = /^osb_sealed_[0-9a-f]{32}$/;
const ROTATION_MS_MAX = 15_000;

const fresh = () => `real-${randomBytes(16).toString("hex")}`;

/** Calls the stand-in from inside with the secret in a header and in the body. */
async function call(sandbox, host, variable) {
  const nonce = randomBytes(8).toString("hex");
  const result = await sandbox.exec.run(
    `curl -sS --max-time 20 https://${host}:${PORT}/v1/messages?nonce=${nonce} ` +
      `-H "x-api-key: $${variable}" -H "content-type: application/json" ` +
      `-d "{\\"key\\":\\"$${variable}\\"}"`,
  );
  const seen = await fetch(`${process.env.OC_OBSERVER_URL}/seen/${nonce}`);
  const arrived = seen.ok ? await seen.json() : undefined;
  return { ...result, arrived };
}

const token = async (sandbox, name) => (await sandbox.exec.run(`printenv ${name}`)).stdout.trim();

async function arrivesReal(sandbox, variable, value) {
  const sealed = await token(sandbox, variable);
  assert.match(sealed, TOKEN);
  const { stdout, stderr, arrived } = await call(sandbox, API, variable);
  assert.equal(stderr, "");
  assert.equal(arrived?.headers["x-api-key"], value, "the header at the API");
  assert.equal(arrived.body, JSON.stringify({ key: value }), "the body at the API");
  assert.ok(!stdout.includes(value), "the real value came back into the sandbox");
  const { echo } = JSON.parse(stdout);
  assert.equal(echo.headers["x-api-key"], sealed, "the header in the echo");
  assert.equal(echo.body, JSON.stringify({ key: sealed }), "the body in the echo");
}

export async function secrets(sdk) {
  await ofStore(sdk);
  await ofProject(sdk);
}

async function ofStore({ Sandbox, SecretStore }) {
  const [bound, free] = [fresh(), fresh()];
  const made = await check("Sandbox.create", "secretStore", async () => {
    const hosts = [API, OTHER];
    const store = await SecretStore.create({ name: "typescript-sealed", egressAllowlist: hosts });
    await SecretStore.setSecret(store.id, "BOUND", bound, { allowedHosts: [API] });
    await SecretStore.setSecret(store.id, "FREE", free);
    return { store, sandbox: await Sandbox.create({ secretStore: store.name }) };
  });
  if (!made) return;
  const { store, sandbox } = made;

  await check("secrets: sealed in the environment", "token, never the value", async () => {
    const { stdout } = await sandbox.exec.run("env");
    for (const name of ["BOUND", "FREE"]) {
      assert.match(stdout, new RegExp(`^${name}=osb_sealed_[0-9a-f]{32}$`, "m"));
    }
    assert.ok(!stdout.includes(bound) && !stdout.includes(free));
  });
  await check("Sandbox.getAllowedHosts", "with a store", async () => {
    assert.deepEqual(await sandbox.getAllowedHosts(), {
      sandboxID: sandbox.sandboxId,
      secretStore: store.name,
      egressAllowlist: [API, OTHER],
      perSecretAllowedHosts: { BOUND: [API] },
    });
  });
  const real = "secrets: real at the API, sealed in the echo";
  await check(real, "bound to the host", () => arrivesReal(sandbox, "BOUND", bound));
  await check(real, "bound to no host", () => arrivesReal(sandbox, "FREE", free));
  await check("secrets: another host gets the token", "as it is", async () => {
    const sealed = await token(sandbox, "BOUND");
    const { arrived } = await call(sandbox, OTHER, "BOUND");
    assert.equal(arrived?.headers["x-api-key"], sealed);
    assert.equal(arrived.body, JSON.stringify({ key: sealed }));
  });
  await check("secrets: a host off the list is refused", "by 403", async () => {
    const url = `https://${BLOCKED}:${PORT}/`;
    const asked = (await sandbox.exec.run(
      `curl -s --max-time 20 -o /dev/null -w '%{http_connect} %{http_code}' ${url}; ` +
        `curl -s --max-time 20 --noproxy '*' -o /dev/null -w ' %{http_code}' ${url}`,
    )).stdout;
    assert.match(asked, /^403 000 (403|000)$/);
    assert.equal((await call(sandbox, BLOCKED, "FREE")).arrived, undefined, "it got through");
  });
  await check("secrets: rotation", "new value, same token", async () => {
    const before = await token(sandbox, "BOUND");
    const rotated = fresh();
    await SecretStore.setSecret(store.id, "BOUND", rotated, { allowedHosts: [API] });
    await eventually("the new value arrives", ROTATION_MS_MAX, async () => {
      const { arrived } = await call(sandbox, API, "BOUND");
      return arrived?.headers["x-api-key"] === rotated;
    });
    assert.equal(await token(sandbox, "BOUND"), before);
    await arrivesReal(sandbox, "BOUND", rotated);
  });
  await check("secrets: deleting the store", "hurts no running sandbox", async () => {
    await SecretStore.delete(store.id);
    await arrivesReal(sandbox, "FREE", free);
  });
  await sandbox.kill();
}

async function ofProject({ Sandbox }) {
  await check("secrets: project", "defaults and secrets are inherited", async () => {
    const value = fresh();
    const project = await plain("POST", "/projects", {
      name: "typescript-project",
      cpuCount: 2,
      memoryMB: 512,
      timeoutSec: 600,
      egressAllowlist: [API],
    });
    assert.equal(project.status, 201);
    const secret = `/projects/${project.body.id}/secrets/PROJECT_KEY`;
    assert.equal((await plain("PUT", secret, { value })).status, 200);
    const created = await plain("POST", "/sandboxes", { project: project.body.name });
    assert.equal(created.status, 201, JSON.stringify(created.body));
    const { sandboxID, cpuCount, memoryMB, timeout } = created.body;
    const sandbox = await Sandbox.connect(sandboxID);
    try {
      assert.deepEqual([cpuCount, memoryMB, timeout], [2, 512, 600]);
      await arrivesReal(sandbox, "PROJECT_KEY", value);
    } finally {
      await sandbox.kill();
      await plain("DELETE", `/projects/${project.body.id}`);
    }
  });
}
