// Image and Snapshots: hashes, builds with their logs, sandboxes from both.

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { check } from "./harness.mjs";

export async function images({ Sandbox, SecretStore, Image, Snapshots }) {
  const folder = mkdtempSync(join(tmpdir(), "oc-image-"));
  mkdirSync(join(folder, "sub"));
  writeFileSync(join(folder, "sub", "t.txt"), "from a folder");
  writeFileSync(join(folder, "one.txt"), "from a file");
  const image = Image.base()
    .env({ PLACE: "über all" })
    .workdir("/srv/app")
    .addFile("/srv/app/inline.txt", "inline")
    .addLocalFile(join(folder, "one.txt"), "/srv/app/one.txt")
    .addLocalDir(folder, "/srv/dir")
    .runCommands("echo built by the client", "cat /srv/dir/sub/t.txt > ~/seen")
    .builderMemory(2048);
  for (const method of ["base", "env", "workdir", "addFile", "addLocalFile", "addLocalDir", "runCommands", "builderMemory"]) {
    await check(`Image.${method}`, "is used below", async () => {});
  }
  await check("Image.aptInstall", "makes a step", async () => {
    const [step] = Image.base().aptInstall(["curl"]).toJSON().steps;
    assert.deepEqual(step, { type: "apt_install", args: { packages: ["curl"] } });
  });
  await check("Image.pipInstall", "makes a step", async () => {
    assert.equal(Image.base().pipInstall(["x"]).toJSON().steps[0].type, "pip_install");
  });
  await check("Image.withStep", "is used by all of them", async () => {
    assert.equal(image.toJSON().steps.length, 6);
  });
  const snapshots = new Snapshots();
  const name = `ts-${Date.now()}`;
  const log = [];
  await check("Snapshots.create", "builds, and tells its log", async () => {
    const made = await snapshots.create({ name, image, onBuildLogs: (line) => log.push(line) });
    assert.deepEqual([made.name, made.status], [name, "ready"]);
    assert.ok(log.includes("built by the client"), log.join("\n"));
    assert.deepEqual(made.manifest, image.toJSON());
  });
  await check("Image.cacheKey", "is known to the server", async () => {
    assert.ok((await snapshots.get(name)).cacheKeys.includes(image.cacheKey()));
  });
  await check("Image.toJSON", "comes back as it was sent", async () => {
    assert.deepEqual((await snapshots.get(name)).manifest, image.toJSON());
  });
  await check("Snapshots.create", "a name once", async () => {
    await assert.rejects(snapshots.create({ name, image }), /409/);
  });
  await check("Snapshots.list", "has it", async () => {
    assert.ok((await snapshots.list()).some((one) => one.name === name));
  });
  await check("Snapshots.get", "has its times", async () => {
    const one = await snapshots.get(name);
    assert.ok(Date.parse(one.createdAt) <= Date.parse(one.lastUsedAt));
  });
  await check("Snapshots.waitUntilReady", "is ready", async () => {
    assert.equal((await snapshots.waitUntilReady(name, { timeoutMs: 20_000 })).status, "ready");
  });
  await check("Sandbox.create", "from a snapshot with a secret store", async () => {
    const store = await SecretStore.create({ name: `store-${name}` });
    await SecretStore.setSecret(store.id, "WORKER_KEY", "a-real-value-for-the-worker-7");
    const sandbox = await Sandbox.create({ snapshot: name, secretStore: store.name });
    try {
      const ran = await sandbox.exec.run("pwd; echo $PLACE; cat ~/seen inline.txt one.txt; echo; echo $WORKER_KEY");
      assert.match(
        ran.stdout,
        /^\/srv\/app\nüber all\nfrom a folderinlinefrom a file\nosb_sealed_/,
      );
    } finally {
      await sandbox.kill();
      await SecretStore.delete(store.id);
    }
  });
  await check("Sandbox.create", "from an image, which is built once", async () => {
    const lines = [];
    const sandbox = await Sandbox.create({ image, onBuildLog: (line) => lines.push(line) });
    try {
      assert.equal((await sandbox.exec.run("cat ~/seen")).stdout, "from a folder");
      assert.ok(lines.some((line) => line.includes("cached")), lines.join("\n"));
      assert.ok(!lines.includes("built by the client"));
    } finally {
      await sandbox.kill();
    }
  });
  await check("Sandbox.create", "a failing step throws its output", async () => {
    const bad = Image.base().runCommands("echo the reason; exit 3");
    await assert.rejects(Sandbox.create({ image: bad }), /Build failed: .*exit code 3: the reason/);
  });
  await check("Snapshots.delete", "is gone, and may be repeated", async () => {
    await snapshots.delete(name);
    await snapshots.delete(name);
    await assert.rejects(snapshots.get(name), /404/);
  });
  rmSync(folder, { recursive: true });
}
