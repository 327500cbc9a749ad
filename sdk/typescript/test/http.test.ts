// Goal: one call does what the contract says about URLs, keys, errors, retries and time.
// Method: a server of our own that answers as each test tells it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import * as sdk from "@opencomputer/sdk";
import { Fake, json, thrown } from "./support.js";

const KEY = `osb_${"k".repeat(64)}`;
const SANDBOX = { sandboxID: "sb-1", status: "running", templateID: "base", sandboxDomain: "x.test" };

test("the URL gets /api once, and the key goes into its header", async (t) => {
  const fake = await Fake.start(t, (_, reply) => json(reply, 200, []));
  for (const apiUrl of [fake.url, `${fake.url}/`, `${fake.url}/api`, `${fake.url}/api//`]) {
    assert.deepEqual(await sdk.Project.list({ apiUrl, apiKey: KEY }), []);
  }
  await sdk.Project.list({ apiUrl: fake.url, apiKey: "" });
  assert.deepEqual(fake.seen.map(({ url }) => url), Array(5).fill("/api/projects"));
  assert.equal(fake.seen[0]?.headers["x-api-key"], KEY);
  assert.ok(!("x-api-key" in (fake.seen[4]?.headers ?? {})), "no key, no header");
});

test("options win over the environment", async (t) => {
  const fake = await Fake.start(t, (_, reply) => json(reply, 200, []));
  const before = { ...process.env };
  t.after(() => Object.assign(process.env, before));
  process.env["OPENCOMPUTER_API_URL"] = fake.url;
  process.env["OPENCOMPUTER_API_KEY"] = "from-the-environment";
  await sdk.SecretStore.list();
  await sdk.SecretStore.list({ apiKey: KEY });
  const keys = fake.seen.map(({ headers }) => headers["x-api-key"]);
  assert.deepEqual(keys, ["from-the-environment", KEY]);
});

test("ids and names can't reach another route", async (t) => {
  const fake = await Fake.start(t, (_, reply) => json(reply, 200, []));
  const opts = { apiUrl: fake.url, apiKey: KEY };
  await sdk.Project.listSecrets("../secret-stores/x?y#z", opts);
  assert.equal(fake.seen[0]?.url, "/api/projects/..%2Fsecret-stores%2Fx%3Fy%23z/secrets");
  for (const id of ["", ".", ".."]) {
    assert.throws(() => sdk.Project.listSecrets(id, opts), sdk.OpenComputerError);
  }
});

test("an error says what the server said", async (t) => {
  const body = { error: "concurrent sandbox limit reached", active: 50, limit: 50, code: "quota" };
  const headers = { "x-request-id": "01REQUEST" };
  const fake = await Fake.start(t, (_, reply) => json(reply, 429, body, headers));
  const error = await thrown(sdk.Sandbox.create({ apiUrl: fake.url, apiKey: KEY }));
  assert.ok(error instanceof sdk.RateLimitError && error instanceof sdk.ApiError);
  assert.equal(error.name, "RateLimitError");
  assert.equal(error.message, `Failed to create sandbox: 429 ${JSON.stringify(body)}`);
  assert.deepEqual([error.status, error.code, error.requestId], [429, "quota", "01REQUEST"]);
  assert.deepEqual([error.active, error.limit], [50, 50]);
  assert.equal(error.reason, "concurrent sandbox limit reached");
  const listed = await thrown(sdk.Project.list({ apiUrl: fake.url, apiKey: KEY }));
  assert.equal(listed.message, "Failed to list projects: 429");
});

test("each status has its class", async (t) => {
  const classes: [number, string | undefined, new (...args: never[]) => Error][] = [
    [400, undefined, sdk.BadRequestError],
    [401, undefined, sdk.AuthenticationError],
    [402, undefined, sdk.PlanLimitError],
    [403, undefined, sdk.PermissionDeniedError],
    [403, "scaling_locked", sdk.ScalingLockedError],
    [403, "sandbox_family_scale_disabled", sdk.SandboxFamilyLimitError],
    [404, undefined, sdk.NotFoundError],
    [409, undefined, sdk.ConflictError],
    [410, undefined, sdk.GoneError],
    [418, undefined, sdk.ApiError],
    [500, undefined, sdk.ServerError],
    [503, undefined, sdk.UnavailableError],
  ];
  const fake = await Fake.start(t, (_, reply, count) => {
    const [status, code] = classes[count - 1] ?? [500, undefined];
    json(reply, status, { error: "no", code });
  });
  for (const [, , kind] of classes) {
    const opts = { apiUrl: fake.url, apiKey: KEY, maxRetries: 0 };
    const error = await thrown(sdk.Project.get("p", opts));
    assert.equal(error.constructor, kind);
  }
});

test("no error and no printed object holds a key or a secret", async (t) => {
  const value = 'a "real"\nvalue';
  const fake = await Fake.start(t, (seen, reply) => {
    if (seen.url.endsWith("/sandboxes/sb-1")) return json(reply, 200, SANDBOX);
    // A proxy that tells everything it was sent.
    return json(reply, 400, { error: `${seen.body} ${seen.headers["x-api-key"]} ${value}` });
  });
  const opts = { apiUrl: fake.url, apiKey: KEY };
  const sandbox = await sdk.Sandbox.connect("sb-1", opts);
  const errors = [
    await thrown(sdk.Project.setSecret("p", "NAME", value, opts)),
    await thrown(sdk.SecretStore.setSecret("s", "NAME", value, opts)),
    await thrown(sdk.Sandbox.create({ ...opts, envs: { A: value } })),
  ];
  const snapshots = new sdk.Snapshots(opts);
  for (const thing of [...errors, sandbox, snapshots, new sdk.Webhooks(opts)]) {
    const everything = inspect(thing, { depth: 9, showHidden: true }) + JSON.stringify(thing);
    assert.ok(!everything.includes(KEY), everything);
    assert.ok(!/real/.test(everything), everything);
  }
  assert.match(errors[0]?.message ?? "", /\[secret\]/);
});

test("what may be repeated is: reads, deletes, and creations by their key", async (t) => {
  const fake = await Fake.start(t, (seen, reply, count) => {
    if (count % 3 === 1) return json(reply, 503, { error: "not now" });
    if (count % 3 === 2) return void reply.destroy();
    return seen.method === "DELETE" ? json(reply, 404, { error: "gone" }) : json(reply, 200, SANDBOX);
  });
  const opts = { apiUrl: fake.url, apiKey: KEY };
  await sdk.Project.get("p", opts);
  await sdk.Sandbox.create(opts);
  // The first try may have arrived: then a repeat finds nothing.
  await sdk.Project.delete("p", opts);
  assert.deepEqual(fake.seen.map(({ method }) => method).join(" "), [
    "GET GET GET", "POST POST POST", "DELETE DELETE DELETE",
  ].join(" "));
  const keys = fake.seen.map(({ headers }) => headers["idempotency-key"]);
  assert.ok(keys[3] !== undefined && keys[3] === keys[4] && keys[4] === keys[5]);
  assert.equal(keys[0], undefined);
});

test("what can't be repeated is sent once", async (t) => {
  const fake = await Fake.start(t, (seen, reply) => {
    return seen.method === "GET" ? json(reply, 200, SANDBOX) : void reply.destroy();
  });
  const sandbox = await sdk.Sandbox.connect("sb-1", { apiUrl: fake.url, apiKey: KEY });
  const error = await thrown(sandbox.createCheckpoint("once"));
  assert.ok(error instanceof sdk.ConnectionError, inspect(error));
  assert.match(error.message, /^Failed to create checkpoint: /);
  assert.ok(await thrown(sandbox.reboot()) instanceof sdk.ConnectionError);
  assert.equal(fake.seen.length, 3);
});

test("a call that the server has not begun goes on until its time is up", async (t) => {
  const fake = await Fake.start(t, (_, reply, count) => {
    if (count > 4) return json(reply, 200, []);
    return json(reply, 503, { error: "sandbox is waking", waking: true });
  });
  const client = { apiUrl: fake.url, apiKey: KEY, maxRetries: 1 };
  assert.deepEqual(await sdk.Project.list(client), []);
  assert.equal(fake.seen.length, 5);
});

test("a server that is not there, and one that never answers", async (t) => {
  const fake = await Fake.start(t, () => undefined);
  const opts = { apiUrl: fake.url, apiKey: KEY, requestTimeoutMs: 300 };
  const started = Date.now();
  const late = await thrown(sdk.Project.list(opts));
  assert.ok(late instanceof sdk.TimeoutError, inspect(late));
  assert.equal(late.message, "Failed to list projects: no answer within 300 ms");
  assert.ok(Date.now() - started < 20_000);
  fake.stop();
  const gone = await thrown(sdk.Project.list({ ...opts, requestTimeoutMs: 30_000, maxRetries: 0 }));
  assert.ok(gone instanceof sdk.ConnectionError, inspect(gone));
  assert.match(gone.message, /ECONNREFUSED/);
});

test("a reply that stops in the middle ends in time", async (t) => {
  const fake = await Fake.start(t, (_, reply) => {
    reply.writeHead(200, { "content-type": "application/json" });
    reply.write("[");
  });
  const late = await thrown(sdk.Project.list({ apiUrl: fake.url, apiKey: "", requestTimeoutMs: 300 }));
  assert.ok(late instanceof sdk.TimeoutError, inspect(late));
});

test("unset options stay out of a create, so that a project's values count", async (t) => {
  const fake = await Fake.start(t, (_, reply) => json(reply, 201, SANDBOX));
  const opts = { apiUrl: fake.url, apiKey: KEY };
  await sdk.Sandbox.create({ ...opts, project: "my-agent" });
  await sdk.Sandbox.create({ ...opts, timeout: 0, envs: { A: "1" }, template: "t", memoryMB: 512 });
  const bodies = fake.seen.map(({ body }) => JSON.parse(body) as unknown);
  assert.deepEqual(bodies, [
    { project: "my-agent" },
    { templateID: "t", timeout: 0, envs: { A: "1" }, memoryMB: 512 },
  ]);
});

test("a sandbox knows its host names, and is killed at the end of its block", async (t) => {
  const fake = await Fake.start(t, (seen, reply) => {
    return seen.method === "DELETE" ? void reply.writeHead(204).end() : json(reply, 201, SANDBOX);
  });
  {
    await using sandbox = await sdk.Sandbox.create({ apiUrl: fake.url, apiKey: KEY });
    assert.equal(sandbox.id, "sb-1");
    assert.equal(sandbox.commands, sandbox.exec);
    assert.equal(sandbox.domain, "sb-1-p80.x.test");
    assert.equal(sandbox.getPreviewDomain(3000), "sb-1-p3000.x.test");
  }
  assert.equal(fake.seen[1]?.method, "DELETE");
});

test("build logs come as they are written, then the result", async (t) => {
  const log = (text: string) => `event: build_log\ndata: {"step":1,"type":"run","message":"${text}"}\n\n`;
  const fake = await Fake.start(t, (seen, reply, count) => {
    assert.equal(seen.headers["accept"], "text/event-stream");
    reply.writeHead(200, { "content-type": "text/event-stream" });
    const result = `event: result\ndata: ${JSON.stringify(SANDBOX)}\n\n`;
    const all = [
      `: keepalive\n\n${log("größe")}event: build_log\ndata: plain\n\n${result}`,
      `${log("one")}event: error\ndata: {"error":"step 1 failed"}\n\n`,
      log("one"),
    ];
    const bytes = Buffer.from(all[count - 1] ?? "");
    // In pieces that cut characters and lines.
    for (let at = 0; at < bytes.length; at += 7) reply.write(bytes.subarray(at, at + 7));
    reply.end();
  });
  const lines: string[] = [];
  const create = () => sdk.Sandbox.create({
    apiUrl: fake.url,
    apiKey: KEY,
    image: sdk.Image.base().runCommands("true"),
    onBuildLog: (line) => lines.push(line),
  });
  assert.equal((await create()).sandboxId, "sb-1");
  assert.deepEqual(lines, ["größe", "plain"]);
  const failed = await thrown(create());
  assert.ok(failed instanceof sdk.BuildError);
  assert.equal(failed.message, "Build failed: step 1 failed");
  assert.match((await thrown(create())).message, /No result received from build stream/);
});

test("a build's plain reply and its refusal are taken too", async (t) => {
  const fake = await Fake.start(t, (_, reply, count) => {
    return count === 1
      ? json(reply, 201, { name: "n", status: "ready" })
      : json(reply, 409, { error: "snapshot name already exists" });
  });
  const snapshots = new sdk.Snapshots({ apiUrl: fake.url, apiKey: KEY });
  const made = await snapshots.create({ name: "n", image: sdk.Image.base() });
  assert.equal(made.status, "ready");
  const taken = await thrown(snapshots.create({ name: "n", image: sdk.Image.base() }));
  assert.ok(taken instanceof sdk.ConflictError);
});

test("filters of usage are spelt as the API has them", async (t) => {
  const fake = await Fake.start(t, (_, reply) => json(reply, 200, {}));
  const filter = { "tag:team": "a,b" };
  await new sdk.Usage(fake.url, KEY).byTag("env", { filter, limit: 5 });
  const { searchParams, pathname } = new URL(fake.seen[0]?.url ?? "", fake.url);
  assert.equal(pathname, "/api/usage");
  assert.deepEqual(Object.fromEntries(searchParams), {
    groupBy: "tag:env", "filter[tag:team]": "a,b", limit: "5",
  });
});

test("a caller's own signal ends a wait at once", async (t) => {
  const fake = await Fake.start(t, (seen, reply) => {
    if (seen.method === "GET" && seen.url.endsWith("/result")) return;
    const started = { execId: "00aa", running: true };
    json(reply, 200, seen.url.endsWith("/run-async") ? started : SANDBOX);
  });
  const sandbox = await sdk.Sandbox.connect("sb-1", { apiUrl: fake.url, apiKey: KEY });
  const signal = AbortSignal.timeout(1_500);
  const aborted = await thrown(sandbox.exec.run("sleep 9", { signal }));
  assert.ok(aborted instanceof sdk.ExecTimeoutError, inspect(aborted));
  assert.equal(aborted.execId, "00aa");
  const late = await thrown(sandbox.exec.run("sleep 9", { timeoutMs: 1_500 }));
  assert.ok(late instanceof sdk.ExecTimeoutError, inspect(late));
});
