// Sandbox: create, connect, isRunning, setTimeout, getAllowedHosts, kill.

import assert from "node:assert/strict";
import { check, eventually, plain } from "./harness.mjs";

/** Checks; returns a running sandbox for the other groups. */
export async function sandboxes({ Sandbox, SecretStore }) {
  const shared = await check("Sandbox.create", "with nothing asked", async () => {
    const sandbox = await Sandbox.create();
    assert.match(sandbox.sandboxId, /^sb-[0-9a-z]{8,}$/);
    assert.equal(sandbox.id, sandbox.sandboxId);
    assert.equal(sandbox.status, "running");
    assert.equal(sandbox.previewAuthToken, "");
    assert.deepEqual(sandbox.webhooks, []);
    return sandbox;
  });
  if (!shared) return undefined;
  const id = shared.sandboxId;

  await check("Sandbox.create", "timeout 0 means never", async () => {
    assert.equal((await plain("GET", `/sandboxes/${id}`)).body.timeout, 0);
  });
  await check("Sandbox.domain", "is built from sandboxDomain", async () => {
    const { body } = await plain("GET", `/sandboxes/${id}`);
    assert.equal(shared.domain, `${id}-p80.${body.sandboxDomain}`);
    assert.equal(shared.domain, body.domain);
  });
  await check("Sandbox.getPreviewDomain", "is built from sandboxDomain", async () => {
    assert.match(shared.getPreviewDomain(3000), new RegExp(`^${id}-p3000\\..+`));
  });
  await check("Sandbox.status", "is what the server says", async () => {
    const { body } = await plain("GET", `/sandboxes/${id}`);
    assert.equal(body.status, shared.status);
  });
  await creation({ Sandbox });
  await connecting({ Sandbox }, shared);

  await check("Sandbox.getAllowedHosts", "no store: no restriction", async () => {
    const hosts = await shared.getAllowedHosts();
    assert.deepEqual(hosts, { sandboxID: id, egressAllowlist: [], perSecretAllowedHosts: {} });
  });
  await check("Sandbox.setTimeout", "is stored", async () => {
    await shared.setTimeout(1234);
    assert.equal((await plain("GET", `/sandboxes/${id}`)).body.timeout, 1234);
    await shared.setTimeout(0);
    assert.equal((await plain("GET", `/sandboxes/${id}`)).body.timeout, 0);
  });
  await check("Sandbox.setTimeout", "negative is refused", async () => {
    await assert.rejects(shared.setTimeout(-1), /Failed to set timeout: 400/);
  });
  await killing({ Sandbox, SecretStore });
  return shared;
}

async function creation({ Sandbox }) {
  await check("Sandbox.create", "envs, metadata, sizes, timeout", async () => {
    const sandbox = await Sandbox.create({
      template: "base",
      timeout: 600,
      envs: { GREETING: "hallo welt", EMPTY: "" },
      metadata: { purpose: "suite" },
      cpuCount: 2,
      memoryMB: 512,
    });
    try {
      const { body } = await plain("GET", `/sandboxes/${sandbox.sandboxId}`);
      assert.equal(body.timeout, 600);
      assert.equal(body.cpuCount, 2);
      assert.equal(body.memoryMB, 512);
      assert.deepEqual(body.metadata, { purpose: "suite" });
      assert.equal(body.envs, undefined, "variables are not shown");
      const { stdout } = await sandbox.exec.run('printf %s "$GREETING/${EMPTY-unset}"');
      assert.equal(stdout, "hallo welt/");
    } finally {
      await sandbox.kill();
    }
  });
  await check("Sandbox.create", "refusals say why", async () => {
    await assert.rejects(Sandbox.create({ cpuCount: 5 }), /400 .*cpuCount must not exceed 4/);
    await assert.rejects(Sandbox.create({ timeout: -1 }), /400 /);
    await assert.rejects(Sandbox.create({ template: "nope" }), /404 .*template not found: nope/);
    await assert.rejects(
      Sandbox.create({ secretStore: "nope" }),
      /400 .*secret store not found: nope/,
    );
  });
  await check("Sandbox.create", "a wrong key is refused", async () => {
    const apiKey = `osb_${"0".repeat(64)}`;
    await assert.rejects(Sandbox.create({ apiKey }), /401 .*invalid API key/);
  });
}

async function connecting({ Sandbox }, shared) {
  await check("Sandbox.connect", "to a running one", async () => {
    const again = await Sandbox.connect(shared.sandboxId);
    assert.equal(again.sandboxId, shared.sandboxId);
    assert.equal(again.status, "running");
    assert.equal((await again.exec.run("echo hi")).stdout, "hi\n");
  });
  await check("Sandbox.connect", "to an unknown one", async () => {
    const unknown = "sb-00000000000000000000000000";
    await assert.rejects(Sandbox.connect(unknown), /: 404/);
  });
  await check("Sandbox.isRunning", "running", async () => {
    assert.equal(await shared.isRunning(), true);
  });
}

async function killing({ Sandbox, SecretStore }) {
  await check("Sandbox.kill", "ends it for good, and may be repeated", async () => {
    const sandbox = await Sandbox.create();
    await sandbox.kill();
    assert.equal(sandbox.status, "stopped");
    await sandbox.kill();
    await assert.rejects(sandbox.exec.run("true"), /410/);
    await assert.rejects(sandbox.files.read("/etc/passwd"), /410/);
    await check("Sandbox.isRunning", "false after the kill", async () => {
      assert.equal(await sandbox.isRunning(), false);
      assert.equal(sandbox.status, "stopped");
    });
    const { body } = await plain("GET", "/sandboxes");
    assert.ok(!body.some((one) => one.sandboxID === sandbox.sandboxId), "still listed");
  });
  await check("Sandbox.kill", "deleteSecretStore", async () => {
    const store = await SecretStore.create({ name: "typescript-single-use" });
    const sandbox = await Sandbox.create({ secretStore: store.name });
    await sandbox.kill({ deleteSecretStore: true });
    await eventually("the store is gone", 5000, async () => {
      return (await plain("GET", `/secret-stores/${store.id}`)).status === 404;
    });
  });
}
