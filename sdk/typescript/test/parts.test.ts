// Goal: images and webhooks are built and checked as the contract says, without a server.

import assert from "node:assert/strict";
import { createHash, createHmac } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as root from "@opencomputer/sdk";
import * as node from "@opencomputer/sdk/node";
import { Image } from "@opencomputer/sdk/dist/image.js";
import { Snapshots } from "@opencomputer/sdk/dist/snapshot.js";

test("every import path of the documents gives the same classes", () => {
  assert.equal(root.Image, Image);
  assert.equal(root.Snapshots, Snapshots);
  assert.equal(node.Sandbox, root.Sandbox);
  assert.deepEqual(Object.keys(node).sort(), Object.keys(root).sort());
  assert.equal(root.SandboxAgent, root.Agent);
});

test("an image is a list of steps that nothing changes afterwards", (t) => {
  const folder = mkdtempSync(join(tmpdir(), "oc-image-"));
  t.after(() => rmSync(folder, { recursive: true }));
  mkdirSync(join(folder, "b"));
  writeFileSync(join(folder, "b", "two"), Buffer.from([0, 255]));
  writeFileSync(join(folder, "a"), "größe");
  const base = Image.base();
  const image = base
    .aptInstall(["curl"]).pipInstall(["requests"]).runCommands("one", "two").env({ A: "1" })
    .workdir("/w").addFile("/f", "größe").addLocalFile(join(folder, "b", "two"), "/g")
    .addLocalDir(folder, "/d");
  assert.deepEqual(base.toJSON(), { base: "base", steps: [] });
  const text = Buffer.from("größe").toString("base64");
  assert.deepEqual(image.toJSON().steps, [
    { type: "apt_install", args: { packages: ["curl"] } },
    { type: "pip_install", args: { packages: ["requests"] } },
    { type: "run", args: { commands: ["one", "two"] } },
    { type: "env", args: { vars: { A: "1" } } },
    { type: "workdir", args: { path: "/w" } },
    { type: "add_file", args: { path: "/f", content: text, encoding: "base64" } },
    { type: "add_file", args: { path: "/g", content: "AP8=", encoding: "base64" } },
    { type: "add_dir", args: { path: "/d", files: [
      { relativePath: "a", content: text }, { relativePath: "b/two", content: "AP8=" },
    ] } },
  ]);
  image.toJSON().steps.pop();
  assert.equal(image.toJSON().steps.length, 8);
  assert.equal(image.builderMemory(8192).toJSON().builderMemoryMB, 8192);
});

test("a cache key depends on the steps and on nothing else", () => {
  const image = Image.base().env({ NAME: "größe" });
  const text = '{"base":"base","steps":[{"type":"env","args":{"vars":{"NAME":"größe"}}}]}';
  assert.equal(image.cacheKey(), createHash("sha256").update(text).digest("hex"));
  assert.equal(image.builderMemory(1).cacheKey(), image.cacheKey());
  assert.notEqual(image.workdir("/").cacheKey(), image.cacheKey());
});

test("a webhook is what it says it is, or an error", async () => {
  const secret = `whsec_${Buffer.from("0123456789abcdef").toString("base64")}`;
  const body = '{"type":"sandbox.ready","sandboxId":"sb-1","eventId":"e","event":{"data":{}}}';
  const sign = (key: string | Buffer, id: string, at: string) =>
    `v1,${createHmac("sha256", key).update(`${id}.${at}.${body}`).digest("base64")}`;
  const now = 1_700_000_000;
  const at = String(now - 10);
  const good = sign(Buffer.from("0123456789abcdef"), "msg_1", at);
  const headers = {
    "svix-id": "msg_1", "svix-timestamp": at, "svix-signature": `v1,old ${good}`,
  };
  const opts = { nowSeconds: now };
  const delivery = await root.verifyWebhook(body, headers, secret, opts);
  assert.equal(delivery.type, "sandbox.ready");
  assert.deepEqual([delivery.deliveryId, delivery.dedupeId], ["msg_1", "msg_1"]);
  // The other spelling of the headers, as a Headers object; a secret that is no base64.
  const other = new Headers({
    "Webhook-Id": "m", "Webhook-Timestamp": at, "Webhook-Signature": sign("testsecret!", "m", at),
  });
  await root.verifyWebhook(body, other, "testsecret!", opts);
  const bad: [string, Record<string, string>, string, { nowSeconds: number }][] = [
    [`${body} `, headers, secret, opts],
    [body, headers, `${secret}x`, opts],
    [body, { ...headers, "svix-id": "msg_2" }, secret, opts],
    [body, { ...headers, "svix-signature": "" }, secret, opts],
    [body, headers, secret, { nowSeconds: now + 400 }],
    [body, { ...headers, "svix-timestamp": "soon" }, secret, opts],
  ];
  for (const [text, sent, key, when] of bad) {
    const check = root.verifyWebhook(text, sent, key, when);
    await assert.rejects(check, root.WebhookVerificationError);
  }
});
