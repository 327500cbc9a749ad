// Sandbox: hibernate, wake, reboot, powerCycle, scale, autoscale, scaling lock; Tags.

import assert from "node:assert/strict";
import { check, plain } from "./harness.mjs";

export async function life({ Sandbox, Tags, ScalingLockedError }) {
  const sandbox = await Sandbox.create();
  try {
    await sleep(sandbox);
    await sizes(sandbox, ScalingLockedError);
    await labels(sandbox, Tags);
  } finally {
    await sandbox.kill();
  }
}

async function shown(sandbox) {
  return (await plain("GET", `/sandboxes/${sandbox.sandboxId}`)).body;
}

async function sleep(sandbox) {
  await sandbox.files.write("/home/sandbox/kept", "kept");
  await check("Sandbox.hibernate", "sleeps, and may be repeated", async () => {
    await sandbox.hibernate();
    assert.equal((await shown(sandbox)).status, "hibernated");
    await sandbox.hibernate();
    assert.equal(await sandbox.isRunning(), false);
  });
  await check("Sandbox.wake", "keeps the disk and sets the timeout", async () => {
    await sandbox.wake({ timeout: 777 });
    assert.equal(sandbox.status, "running");
    const { status, timeout } = await shown(sandbox);
    assert.deepEqual([status, timeout], ["running", 777]);
    assert.equal(await sandbox.files.read("/home/sandbox/kept"), "kept");
  });
  await check("Sandbox.wake", "a command wakes it too", async () => {
    await sandbox.hibernate();
    assert.equal((await sandbox.exec.run("echo hi")).stdout, "hi\n");
  });
  await check("Sandbox.wake", "files ask again until it is awake", async () => {
    await sandbox.hibernate();
    assert.equal(await sandbox.files.read("/home/sandbox/kept"), "kept");
    await sandbox.wake();
    assert.equal((await shown(sandbox)).timeout, 0);
  });
  for (const how of ["reboot", "powerCycle"]) {
    await check(`Sandbox.${how}`, "keeps the disk, ends processes", async () => {
      await sandbox.exec.run("nohup sleep 600 >/dev/null 2>&1 & echo");
      await sandbox[how]();
      assert.equal((await sandbox.exec.run("pgrep -c sleep; cat kept")).stdout, "0\nkept");
    });
  }
}

async function sizes(sandbox, ScalingLockedError) {
  const sandboxID = sandbox.sandboxId;
  const bounds = { minMemoryMB: 1024, maxMemoryMB: 4096 };
  await check("Sandbox.setAutoscale", "within two tiers", async () => {
    const set = await sandbox.setAutoscale({ enabled: true, ...bounds });
    assert.deepEqual(set, { sandboxID, enabled: true, ...bounds });
  });
  await check("Sandbox.getAutoscale", "is what was set", async () => {
    assert.deepEqual(await sandbox.getAutoscale(), { sandboxID, enabled: true, ...bounds });
  });
  await check("Sandbox.scale", "to a tier, and autoscale is off", async () => {
    const { memoryMB, cpuPercent } = await sandbox.scale({ memoryMB: 4096 });
    assert.deepEqual([memoryMB, cpuPercent], [4096, 100]);
    assert.equal((await sandbox.getAutoscale()).enabled, false);
  });
  await check("Sandbox.setScalingLock", "refuses every change", async () => {
    assert.deepEqual(await sandbox.setScalingLock(true), { sandboxID, locked: true });
    await assert.rejects(sandbox.scale({ memoryMB: 1024 }), ScalingLockedError);
  });
  await check("Sandbox.getScalingLock", "is what was set", async () => {
    assert.deepEqual(await sandbox.getScalingLock(), { sandboxID, locked: true });
    await sandbox.setScalingLock(false);
    await assert.rejects(sandbox.scale({ memoryMB: 1000 }), /400/);
  });
}

async function labels(sandbox, Tags) {
  const tags = new Tags(`${process.env.OPENCOMPUTER_API_URL}/api`, process.env.OPENCOMPUTER_API_KEY);
  const id = sandbox.sandboxId;
  await check("Tags.set", "replaces all of them", async () => {
    assert.deepEqual((await tags.set(id, { team: "a", env: "b" })).tags, { team: "a", env: "b" });
    await tags.set(id, { team: "suite" });
  });
  await check("Tags.get", "is what was set", async () => {
    const { tags: all, tagsLastUpdatedAt } = await tags.get(id);
    assert.deepEqual(all, { team: "suite" });
    assert.ok(!Number.isNaN(Date.parse(tagsLastUpdatedAt)));
  });
  await check("Tags.listKeys", "counts", async () => {
    const keys = await tags.listKeys();
    assert.deepEqual(keys, [{ key: "team", sandboxCount: 1, valueCount: 1 }]);
  });
}
