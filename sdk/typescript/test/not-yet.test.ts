// Goal: what a server does not have is told by its documented error, in time; and where it has it,
// it works.
// Method: each feature is tried; a server without it counts as skipped, in print.

import assert from "node:assert/strict";
import { after, before, test, type TestContext } from "node:test";
import {
  ApiError, Image, Sandbox, Snapshots, Templates, Usage, Webhooks,
} from "@opencomputer/sdk";
import { skip } from "./support.js";

const NOT_THERE = [400, 404, 405, 501, 503];
let sandbox: Sandbox;

before(async () => {
  sandbox = await Sandbox.create({ memoryMB: 256 });
});
after(() => sandbox.kill());

/** Tries it; a server that lacks it must say so by one of the documented errors. */
async function tried<T>(t: TestContext, work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    assert.ok(error instanceof ApiError, String(error));
    assert.ok(NOT_THERE.includes(error.status), error.message);
    assert.notEqual(error.reason, "", "it says why");
    skip(t, `this server does not have it: ${error.status} ${error.reason}`);
    return undefined;
  }
}

test("images", async (t) => {
  const logs: string[] = [];
  const image = Image.base().runCommands("echo made > /home/sandbox/made");
  const onBuildLog = (line: string) => logs.push(line);
  const made = await tried(t, Sandbox.create({ image, onBuildLog, memoryMB: 256 }));
  if (made === undefined) return;
  assert.equal(await made.files.read("/home/sandbox/made"), "made\n");
  assert.ok(logs.length > 0);
  await made.kill();
});

test("snapshots", async (t) => {
  const snapshots = new Snapshots();
  const image = Image.base().runCommands("echo made > /home/sandbox/made");
  const made = await tried(t, snapshots.create({ name: "sdk-test", image }));
  if (made === undefined) return;
  assert.equal((await snapshots.waitUntilReady("sdk-test")).status, "ready");
  assert.equal((await snapshots.get("sdk-test")).name, "sdk-test");
  assert.ok((await snapshots.list()).some(({ name }) => name === "sdk-test"));
  await using from = await Sandbox.create({ snapshot: "sdk-test" });
  assert.equal(await from.files.read("/home/sandbox/made"), "made\n");
  await snapshots.delete("sdk-test");
  await snapshots.delete("sdk-test");
});

test("templates", async (t) => {
  const templates = new Templates();
  const listed = await tried(t, templates.list());
  if (listed !== undefined) assert.ok(listed.some(({ name }) => name === "base"));
});

test("preview URLs", async (t) => {
  const made = await tried(t, sandbox.createPreviewURL({ port: 3000 }));
  if (made === undefined) return;
  assert.equal(made.port, 3000);
  assert.equal((await sandbox.listPreviewURLs()).length, 1);
  await sandbox.deletePreviewURL(3000);
  assert.ok((await sandbox.rotatePreviewAuthToken()).length >= 16);
});

test("agent sessions", async (t) => {
  const session = await tried(t, sandbox.agent.start({ prompt: "hello" }));
  if (session === undefined) return;
  assert.ok((await sandbox.agent.list()).some(({ sessionID }) => sessionID === session.sessionId));
  await session.kill();
  await session.done;
});

test("webhooks", async (t) => {
  const webhooks = new Webhooks();
  const made = await tried(t, webhooks.create({ url: "https://api.example.test/hook" }));
  if (made === undefined) return;
  assert.match(await webhooks.getSecret(made.id), /^whsec_/);
  await webhooks.delete(made.id);
});

test("usage", async (t) => {
  const usage = await tried(t, new Usage().bySandbox());
  if (usage !== undefined) assert.ok(Array.isArray(usage.items));
});

test("mounts", async (t) => {
  const listed = await tried(t, sandbox.mounts.list());
  if (listed !== undefined) assert.deepEqual(listed, []);
});
