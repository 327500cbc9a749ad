// exec.start, background, attach, list, kill, shell, reattachShell: the WebSocket.

import assert from "node:assert/strict";
import { check, collector, eventually } from "./harness.mjs";

export async function sessions(sdk, sandbox) {
  await starting(sandbox);
  await attaching(sandbox);
  await shells(sdk, sandbox);
}

async function starting({ exec, sandboxId }) {
  await check("exec.start", "both streams, then the exit", async () => {
    const { got, callbacks } = collector();
    const session = await exec.start("echo out; echo err >&2; exit 7", callbacks);
    assert.match(session.sessionId, /\S/);
    assert.equal(await session.done, 7);
    assert.deepEqual(got, { stdout: "out\n", stderr: "err\n", exit: 7, replayed: true });
  });
  await check("exec.start", "with args there is no shell", async () => {
    const { got, callbacks } = collector();
    const args = ["%s|", "$HOME", "a b", "*"];
    const session = await exec.start("printf", { args, ...callbacks });
    assert.equal(await session.done, 0);
    assert.equal(got.stdout, "$HOME|a b|*|");
  });
  await check("exec.start", "env and cwd", async () => {
    const { got, callbacks } = collector();
    const options = { env: { A: "1" }, cwd: "/tmp", ...callbacks };
    const session = await exec.start('echo "$A $PWD"', options);
    await session.done;
    assert.equal(got.stdout, "1 /tmp\n");
  });
  await check("exec.start", "a timeout ends it", async () => {
    const session = await exec.start("sleep 300", { timeout: 1 });
    assert.equal(await session.done, -1);
  });
  await check("session.sendStdin", "text and bytes", async () => {
    const { got, callbacks } = collector();
    const session = await exec.start("read a; read b; echo got $a and $b", callbacks);
    session.sendStdin("one\n");
    session.sendStdin(new TextEncoder().encode("two\n"));
    assert.equal(await session.done, 0);
    assert.equal(got.stdout, "got one and two\n");
  });
  await check("session.sendStdin", "a megabyte", async () => {
    const { got, callbacks } = collector();
    const session = await exec.start("head -c 1000000 | sha256sum", callbacks);
    for (let i = 0; i < 10; i++) session.sendStdin("y".repeat(100_000));
    assert.equal(await session.done, 0);
    const { createHash } = await import("node:crypto");
    const sum = createHash("sha256").update("y".repeat(1_000_000)).digest("hex");
    assert.equal(got.stdout, `${sum}  -\n`);
  });
  await check("session.kill", "SIGTERM and the default", async () => {
    for (const [signal, code] of [[15, 143], [undefined, 137]]) {
      const session = await exec.start("sleep 300");
      await session.kill(signal);
      assert.ok([code, -1].includes(await session.done));
    }
  });
  await check("exec.background", "is start", async () => {
    const session = await exec.background("exit 3");
    assert.equal(await session.done, 3);
  });
  await check("exec.list", "has every field", async () => {
    const session = await exec.start("sleep", { args: ["300"] });
    const mine = (await exec.list()).find((one) => one.sessionID === session.sessionId);
    assert.equal(mine.sandboxID, sandboxId);
    assert.equal(mine.command, "sleep");
    assert.deepEqual(mine.args, ["300"]);
    assert.equal(mine.running, true);
    assert.equal(mine.attachedClients, 1);
    assert.ok(Math.abs(Date.now() - Date.parse(mine.startedAt)) < 60_000);
    assert.equal(mine.exitCode, undefined);
    await check("exec.kill", "by id, also when it has ended", async () => {
      await exec.kill(session.sessionId);
      assert.ok([137, -1].includes(await session.done));
      await exec.kill(session.sessionId);
    });
    const ended = (await exec.list()).find((one) => one.sessionID === session.sessionId);
    assert.equal(ended.running, false);
    assert.ok([137, -1].includes(ended.exitCode));
  });
  await check("exec.kill", "an unknown session", async () => {
    await assert.rejects(exec.kill("00000000"), /404/);
  });
}

async function attaching({ exec }) {
  await check("exec.attach", "replay, then live, by two clients", async () => {
    const first = collector();
    const session = await exec.start("echo before; read line; echo after $line", first.callbacks);
    await eventually("the first line", 5000, () => first.got.stdout === "before\n");
    const second = collector();
    const again = await exec.attach(session.sessionId, second.callbacks);
    await eventually("the replay", 5000, () => second.got.replayed);
    assert.equal(second.got.stdout, "before\n");
    again.sendStdin("x\n");
    assert.deepEqual(await Promise.all([session.done, again.done]), [0, 0]);
    for (const { got } of [first, second]) assert.equal(got.stdout, "before\nafter x\n");
  });
  await check("exec.attach", "to one that has ended", async () => {
    const session = await exec.start("echo kept; exit 5");
    await session.done;
    const { got, callbacks } = collector();
    const again = await exec.attach(session.sessionId, callbacks);
    assert.equal(await again.done, 5);
    assert.deepEqual(got, { stdout: "kept\n", stderr: "", exit: 5, replayed: true });
  });
  await check("exec.attach", "to an unknown one", async () => {
    await assert.rejects(exec.attach("00000000"), /WebSocket/);
  });
  await check("session.close", "leaves the process alone", async () => {
    const session = await exec.start("sleep 1; echo survived");
    session.close();
    const { got, callbacks } = collector();
    const again = await exec.attach(session.sessionId, callbacks);
    assert.equal(await again.done, 0);
    assert.equal(got.stdout, "survived\n");
  });
  await check("exec.start", "maxRunAfterDisconnect ends it", async () => {
    const session = await exec.start("sleep 300", { maxRunAfterDisconnect: 1 });
    session.close();
    await eventually("it is killed", 10_000, async () => {
      const mine = (await exec.list()).find((one) => one.sessionID === session.sessionId);
      return mine.running === false;
    });
  });
}

async function shells({ ShellBusyError, ShellClosedError }, { exec }) {
  const shell = await check("exec.shell", "opens with cwd and env", async () => {
    const opened = await exec.shell({ cwd: "/tmp", env: { FIRST: "1" } });
    const { stdout } = await opened.run('echo "$PWD $FIRST"');
    assert.equal(stdout, "/tmp 1\n");
    return opened;
  });
  if (!shell) return;
  await check("shell.run", "keeps folder, variables and functions", async () => {
    await shell.run("cd /workspace; export SECOND=2; f() { echo called $1; }");
    assert.equal((await shell.run("pwd; echo $SECOND; f x")).stdout, "/workspace\n2\ncalled x\n");
  });
  await check("shell.run", "exit code and both streams", async () => {
    const { got, callbacks } = collector();
    const { onStdout, onStderr } = callbacks;
    const result = await shell.run("echo o; echo e >&2; false", { onStdout, onStderr });
    assert.deepEqual(result, { exitCode: 1, stdout: "o\n", stderr: "e\n" });
    assert.deepEqual([got.stdout, got.stderr], ["o\n", "e\n"]);
  });
  await check("shell.run", "one at a time", async () => {
    const running = shell.run("sleep 0.5; echo slow");
    await assert.rejects(shell.run("true"), ShellBusyError);
    assert.equal((await running).stdout, "slow\n");
  });
  await check("exec.reattachShell", "finds the shell as it was left", async () => {
    const again = await exec.reattachShell(shell.sessionId);
    // Output that came before the end of the replay is dropped: wait for that.
    await new Promise((resolve) => setTimeout(resolve, 300));
    assert.equal((await again.run("echo $SECOND")).stdout, "2\n");
  });
  await check("shell.close", "ends bash", async () => {
    await shell.close();
    await assert.rejects(shell.run("true"), ShellClosedError);
    const mine = (await exec.list()).find((one) => one.sessionID === shell.sessionId);
    assert.equal(mine.running, false);
  });
}
