// Sandbox: checkpoints, forks with secrets, restores, patches.

import assert from "node:assert/strict";
import { check, eventually } from "./harness.mjs";

export async function checkpoints({ Sandbox, SecretStore }) {
  const sandbox = await Sandbox.create({ envs: { COLOUR: "blue" } });
  const file = "/home/sandbox/file";
  try {
    await sandbox.files.write(file, "one");
    let id;
    await check("Sandbox.createCheckpoint", "is ready soon", async () => {
      const made = await sandbox.createCheckpoint("first");
      assert.deepEqual([made.name, made.sandboxId], ["first", sandbox.sandboxId]);
      await eventually("it is ready", 30_000, async () => {
        const [one] = await sandbox.listCheckpoints();
        return one.status === "ready" && one.sizeBytes > 0;
      });
      id = made.id;
    });
    await check("Sandbox.createCheckpoint", "a name once", async () => {
      await assert.rejects(sandbox.createCheckpoint("first"), /409/);
    });
    await check("Sandbox.listCheckpoints", "has it", async () => {
      assert.deepEqual((await sandbox.listCheckpoints()).map((one) => one.id), [id]);
    });
    await sandbox.files.write(file, "two");
    await check("Sandbox.createFromCheckpoint", "has the disk and variables of then", async () => {
      const fork = await Sandbox.createFromCheckpoint(id, { envs: { MORE: "x" } });
      try {
        assert.equal(await fork.files.read(file), "one");
        assert.equal((await fork.exec.run("echo $COLOUR $MORE")).stdout, "blue x\n");
        await fork.files.write(file, "fork");
      } finally {
        await fork.kill();
      }
      assert.equal(await sandbox.files.read(file), "two");
    });
    await check("Sandbox.createFromCheckpoint", "with a secret store of its own", async () => {
      const store = await SecretStore.create({ name: `fork-${id}` });
      await SecretStore.setSecret(store.id, "FORK_KEY", "a-real-value-for-the-fork-42");
      const fork = await Sandbox.createFromCheckpoint(id, { secretStore: store.name });
      try {
        assert.match((await fork.exec.run("echo $FORK_KEY")).stdout, /^osb_sealed_/);
      } finally {
        await fork.kill();
        await SecretStore.delete(store.id);
      }
    });
    await check("Sandbox.restoreCheckpoint", "puts the disk back", async () => {
      await sandbox.restoreCheckpoint(id);
      assert.equal(await sandbox.files.read(file), "one");
    });
    await patches(Sandbox, id);
    await check("Sandbox.deleteCheckpoint", "is gone, and may be repeated", async () => {
      await sandbox.deleteCheckpoint(id);
      assert.deepEqual(await sandbox.listCheckpoints(), []);
      await sandbox.deleteCheckpoint(id);
    });
  } finally {
    await sandbox.kill();
  }
}

async function patches(Sandbox, id) {
  let patch;
  await check("Sandbox.createCheckpointPatch", "is numbered", async () => {
    const script = "echo patched > /etc/patched";
    ({ patch } = await Sandbox.createCheckpointPatch(id, { script, description: "d" }));
    assert.deepEqual([patch.sequence, patch.strategy], [1, "on_wake"]);
  });
  await check("Sandbox.listCheckpointPatches", "has it", async () => {
    const listed = await Sandbox.listCheckpointPatches(id);
    assert.deepEqual(listed.map((one) => one.id), [patch.id]);
  });
  await check("Sandbox.createFromCheckpoint", "runs the patches first", async () => {
    const fork = await Sandbox.createFromCheckpoint(id);
    try {
      assert.equal(await fork.files.read("/etc/patched"), "patched\n");
    } finally {
      await fork.kill();
    }
  });
  await check("Sandbox.deleteCheckpointPatch", "is gone", async () => {
    await Sandbox.deleteCheckpointPatch(id, patch.id);
    assert.deepEqual(await Sandbox.listCheckpointPatches(id), []);
  });
}
