// exec.run: it posts to run-async and polls the result.

import assert from "node:assert/strict";
import { check, eventually } from "./harness.mjs";

export async function exec({ ExecTimeoutError }, sandbox) {
  const run = (command, options) => sandbox.exec.run(command, options);
  const one = (what, body) => check("exec.run", what, body);

  await one("a quick command", async () => {
    assert.deepEqual(await run("echo out; echo err >&2"), {
      exitCode: 0,
      stdout: "out\n",
      stderr: "err\n",
    });
  });
  await one("a command longer than the first reply waits", async () => {
    const result = await run("echo early; sleep 1.5; echo late");
    assert.deepEqual(result, { exitCode: 0, stdout: "early\nlate\n", stderr: "" });
  });
  await one("a non-zero exit is a result, not an error", async () => {
    assert.equal((await run("exit 42")).exitCode, 42);
    assert.equal((await run("no-such-command-at-all")).exitCode, 127);
  });
  await one("the timeout kills the whole group", async () => {
    const command = "echo begun; sleep 300 & echo $! >/tmp/background; sleep 300";
    const result = await run(command, { timeout: 1 });
    assert.equal(result.exitCode, -1);
    assert.equal(result.stdout, "begun\n");
    assert.match(result.stderr, /\nProcess timed out$/);
    const gone = "! kill -0 $(cat /tmp/background) 2>/dev/null";
    await eventually("its child is gone", 5000, async () => (await run(gone)).exitCode === 0);
  });
  await one("env", async () => {
    const { stdout } = await run('printf %s "$A|$B"', { env: { A: "1 2", B: "ü$x'\"" } });
    assert.equal(stdout, "1 2|ü$x'\"");
    assert.equal((await run('printf %s "${A-unset}"')).stdout, "unset", "for one command only");
  });
  await one("cwd", async () => {
    assert.equal((await run("pwd")).stdout, "/home/sandbox\n");
    assert.equal((await run("pwd", { cwd: "/tmp" })).stdout, "/tmp\n");
    assert.equal((await run("pwd", { cwd: "/workspace" })).stdout, "/workspace\n");
    const missing = await run("pwd", { cwd: "/no/such/folder" }).catch((error) => error);
    const refused = missing instanceof Error && /400/.test(missing.message);
    assert.ok(refused || missing.exitCode === -1, "a missing folder is told");
  });
  await one("large output arrives whole", async () => {
    const { stdout, stderr } = await run(
      "head -c 3000000 /dev/zero | tr '\\0' x; head -c 500000 /dev/zero | tr '\\0' e >&2",
    );
    assert.ok(stdout === "x".repeat(3_000_000), `stdout: ${stdout.length} characters`);
    assert.ok(stderr === "e".repeat(500_000), `stderr: ${stderr.length} characters`);
  });
  await one("characters and stray bytes", async () => {
    assert.equal((await run("printf 'größe 漢字'")).stdout, "größe 漢字");
    assert.equal((await run("printf 'a\\377b'")).stdout, "a\ufffdb");
  });
  await one("runs as the user sandbox", async () => {
    assert.equal((await run("id -un; id -u; id -g; echo $HOME")).stdout,
      "sandbox\n1000\n1000\n/home/sandbox\n");
  });
  await one("timeoutMs ends the wait, not the command", async () => {
    const command = "sleep 2; echo finished > /tmp/finished";
    const error = await run(command, { timeoutMs: 600 }).catch((e) => e);
    assert.ok(error instanceof ExecTimeoutError, String(error));
    assert.ok(error.execId);
    await eventually("it ends all the same", 10_000, async () => {
      return (await run("cat /tmp/finished 2>/dev/null")).stdout === "finished\n";
    });
  });
  await one("an abort ends the wait", async () => {
    const error = await run("sleep 5", { signal: AbortSignal.timeout(600) }).catch((e) => e);
    assert.ok(error instanceof ExecTimeoutError, String(error));
  });
  await one("many at once", async () => {
    const numbers = Array.from({ length: 12 }, (_, i) => i);
    const results = await Promise.all(numbers.map((i) => run(`sleep 0.5; echo ${i}`)));
    assert.deepEqual(results.map((result) => result.stdout), numbers.map((i) => `${i}\n`));
  });
  await check("Sandbox.commands", "is exec under its old name", async () => {
    assert.equal((await sandbox.commands.run("echo $0")).stdout, "sh\n");
  });
}
