// Goal: no call hangs when the server dies under it, and what may be repeated survives it.
// Method: the server is killed as by a crash and started again at the same address.

import assert from "node:assert/strict";
import { test } from "node:test";
import { ConnectionError, OpenComputerError, Project, Sandbox } from "@opencomputer/sdk";
import { need, thrown } from "./support.js";

const control = async (what: string): Promise<void> => {
  const reply = await fetch(`${need("OC_CONTROL_URL")}/${what}`, { method: "POST" });
  assert.equal(reply.status, 204);
};

test("everything that waits ends when the server dies", async () => {
  const sandbox = await Sandbox.create({ memoryMB: 256 });
  const session = await sandbox.exec.start("echo started; sleep 300");
  const shell = await sandbox.exec.shell();
  const pty = await sandbox.pty.create();
  const waiting = [
    thrown(sandbox.exec.run("sleep 300", { timeout: 300 })),
    thrown(shell.run("sleep 300")),
    (async () => {
      for await (const piece of sandbox.exec.stream("sleep 300")) {
        if (piece.type === "exit") assert.equal(piece.exitCode, -1);
      }
    })(),
    thrown((async () => {
      for await (const _ of sandbox.logs()) continue;
      throw new Error("the log ended");
    })()),
  ];
  await new Promise((resolve) => setTimeout(resolve, 500));
  await control("kill");
  assert.equal(await session.done, -1);
  assert.ok(session.disconnected);
  await pty.done;
  const [ran] = await Promise.all(waiting);
  assert.ok(ran instanceof OpenComputerError, String(ran));
  assert.ok(await thrown(Project.list({ maxRetries: 0 })) instanceof ConnectionError);
  assert.equal(await sandbox.isRunning(), false);
  assert.equal(await sandbox.files.exists("/tmp"), false);

  // A creation that finds nobody is made once, when the server is back.
  const created = Project.create({ name: "survives", maxRetries: 60, requestTimeoutMs: 60_000 });
  await control("start");
  const project = await created;
  await Project.delete(project.id);
  assert.equal((await sandbox.exec.run("echo still here")).stdout, "still here\n");
  const again = await sandbox.exec.attach(session.sessionId);
  await again.kill();
  assert.ok([137, -1].includes(await again.done));
  await sandbox.kill();
});

for (const end of ["kill", "powerCycle"] as const) {
  test(`everything that waits ends with the sandbox's processes: ${end}`, async () => {
    const sandbox = await Sandbox.create({ memoryMB: 256 });
    const session = await sandbox.exec.start("sleep 300");
    const running = sandbox.exec.run("sleep 300", { timeout: 300 }).catch((error: unknown) => error);
    const pty = await sandbox.pty.create();
    await new Promise((resolve) => setTimeout(resolve, 500));
    await (await Sandbox.connect(sandbox.sandboxId))[end]();
    assert.notEqual(await session.done, 0);
    await pty.done;
    const ended = await running;
    const known = ended instanceof OpenComputerError || (ended as { exitCode: number }).exitCode !== 0;
    assert.ok(known, String(ended));
    await sandbox.kill();
  });
}
