// Goal: every class does its work against a real server with real sandboxes.
// Method: one sandbox for what leaves it as it was; others where it does not.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { after, before, test } from "node:test";
import {
  ApiError, AuthenticationError, BadRequestError, ConflictError, ExecTimeoutError, Filesystem,
  GoneError, NotFoundError, Project, Sandbox, SecretStore, ShellBusyError, ShellClosedError, Tags,
  type ExecOutput,
} from "@opencomputer/sdk";
import { apiKey, eventually, need, thrown } from "./support.js";

const TOKEN = /^osb_sealed_[0-9a-f]{32}$/;
const KILLED = [137, -1];
const fresh = (): string => randomBytes(8).toString("hex");
let sandbox: Sandbox;

before(async () => {
  sandbox = await Sandbox.create({ memoryMB: 512, envs: { COLOUR: "blue" }, metadata: { a: "b" } });
});
after(() => sandbox.kill());

test("Project: every method", async () => {
  const name = `sdk-${fresh()}`;
  const project = await Project.create({ name, cpuCount: 2, egressAllowlist: ["a.test"] });
  assert.deepEqual([project.name, project.cpuCount, project.memoryMB], [name, 2, 1024]);
  assert.deepEqual(project.egressAllowlist, ["a.test"]);
  assert.ok(await thrown(Project.create({ name })) instanceof ConflictError);
  assert.deepEqual(await Project.get(project.id), project);
  assert.ok((await Project.list()).some(({ id }) => id === project.id));
  const changed = await Project.update(project.id, { memoryMB: 512, egressAllowlist: [] });
  assert.deepEqual([changed.cpuCount, changed.memoryMB, changed.egressAllowlist], [2, 512, []]);
  await Project.setSecret(project.id, "B", "value", { allowedHosts: ["b.test"] });
  await Project.setSecret(project.id, "A", "value");
  assert.deepEqual(await Project.listSecrets(project.id), ["A", "B"]);
  const fork = await Sandbox.create({ project: name });
  const info = await fork.getInfo();
  assert.deepEqual([info.cpuCount, info.memoryMB], [2, 512]);
  const hosts = await fork.getAllowedHosts();
  assert.deepEqual([hosts.project, hosts.perSecretAllowedHosts], [name, { B: ["b.test"] }]);
  await fork.kill();
  await Project.deleteSecret(project.id, "A");
  await Project.deleteSecret(project.id, "A");
  await Project.delete(project.id);
  const gone = await thrown(Project.get(project.id));
  assert.ok(gone instanceof NotFoundError);
  assert.equal(gone.message, "Failed to get project: 404");
  assert.equal(gone.reason, "project not found");
  assert.ok(gone.requestId);
});

test("SecretStore: every method", async () => {
  const name = `sdk-${fresh()}`;
  const store = await SecretStore.create({ name, egressAllowlist: ["a.test"] });
  assert.ok(await thrown(SecretStore.create({ name })) instanceof ConflictError);
  assert.deepEqual(await SecretStore.get(store.id), store);
  assert.ok((await SecretStore.list()).some(({ id }) => id === store.id));
  const changed = await SecretStore.update(store.id, { name: `${name}-2`, egressAllowlist: [] });
  assert.deepEqual([changed.name, changed.egressAllowlist], [`${name}-2`, []]);
  await SecretStore.setSecret(store.id, "KEY", "value", { allowedHosts: ["a.test"] });
  const [entry] = await SecretStore.listSecrets(store.id);
  assert.deepEqual([entry?.name, entry?.storeId, entry?.allowedHosts], ["KEY", store.id, ["a.test"]]);
  const bad = await thrown(SecretStore.setSecret(store.id, "no name", "a-secret-value"));
  assert.ok(bad instanceof BadRequestError && !bad.message.includes("a-secret-value"));
  await SecretStore.deleteSecret(store.id, "KEY");
  await SecretStore.deleteSecret(store.id, "KEY");
  await SecretStore.delete(store.id);
  assert.ok(await thrown(SecretStore.get(store.id)) instanceof NotFoundError);
});

test("a secret is a token inside and the value at its host", async () => {
  const [value, name, nonce] = [`real-${fresh()}`, `sdk-${fresh()}`, fresh()];
  const [host] = need("OC_STANDIN_HOSTS").split(",");
  const store = await SecretStore.create({ name });
  await SecretStore.setSecret(store.id, "API_KEY", value, { allowedHosts: [host!] });
  await using inside = await Sandbox.create({ secretStore: name });
  assert.match((await inside.exec.run("printenv API_KEY")).stdout.trim(), TOKEN);
  const url = `https://${host}:${need("OC_STANDIN_PORT")}/?nonce=${nonce}`;
  const { stdout } = await inside.exec.run(`curl -sS --max-time 20 ${url} -H "x-api-key: $API_KEY"`);
  assert.ok(!stdout.includes(value));
  const seen = await (await fetch(`${need("OC_OBSERVER_URL")}/seen/${nonce}`)).json();
  assert.equal((seen as { headers: Record<string, string> }).headers["x-api-key"], value);
  await SecretStore.delete(store.id);
});

test("Sandbox: what it tells of itself", async () => {
  const again = await Sandbox.connect(sandbox.sandboxId);
  assert.deepEqual([again.sandboxId, again.status], [sandbox.sandboxId, "running"]);
  assert.equal(await again.isRunning(), true);
  const info = await again.getInfo();
  assert.deepEqual([info.memoryMB, info.metadata], [512, { a: "b" }]);
  const listed = await Sandbox.list({ metadata: { a: "b" }, limit: 10 });
  assert.deepEqual(listed.map(({ sandboxID }) => sandboxID), [sandbox.sandboxId]);
  const missing = await thrown(Sandbox.connect("sb-00000000000000000000000000"));
  assert.ok(missing instanceof NotFoundError, missing.message);
  const wrong = await thrown(Sandbox.connect(sandbox.sandboxId, { apiKey: `osb_${"0".repeat(64)}` }));
  assert.ok(wrong instanceof AuthenticationError && wrong.reason === "invalid API key");
});

test("Sandbox: sleep, wake, timeout, restarts", async () => {
  await using one = await Sandbox.create({ memoryMB: 256, timeout: 600 });
  await one.files.write("kept", "on disk");
  await one.hibernate();
  assert.equal(await one.isRunning(), false);
  assert.equal(one.status, "hibernated");
  await one.wake({ timeout: 900 });
  assert.equal((await one.getInfo()).timeout, 900);
  await one.setTimeout(0);
  assert.equal((await one.getInfo()).timeout, 0);
  assert.ok(await thrown(one.setTimeout(-1)) instanceof BadRequestError);
  await one.reboot();
  await one.powerCycle();
  assert.equal(await one.files.read("kept"), "on disk");
  await one.hibernate();
  // Any use wakes it.
  assert.equal((await one.exec.run("cat kept")).stdout, "on disk");
});

test("Sandbox: scaling and its lock", async () => {
  const scaled = await sandbox.scale({ memoryMB: 1024 });
  assert.deepEqual([scaled.sandboxID, scaled.memoryMB], [sandbox.sandboxId, 1024]);
  const bounds = { enabled: true, minMemoryMB: 1024, maxMemoryMB: 4096 };
  assert.deepEqual(await sandbox.setAutoscale(bounds), { sandboxID: sandbox.sandboxId, ...bounds });
  assert.equal((await sandbox.getAutoscale()).enabled, true);
  await sandbox.setScalingLock(true);
  assert.deepEqual(await sandbox.getScalingLock(), { sandboxID: sandbox.sandboxId, locked: true });
  const locked = await thrown(sandbox.scale({ memoryMB: 4096 }));
  assert.equal(locked.name, "ScalingLockedError");
  assert.equal((locked as ApiError).code, "scaling_locked");
  await sandbox.setScalingLock(false);
});

test("a killed sandbox says so, and is killed again without complaint", async () => {
  const one = await Sandbox.create({ memoryMB: 256 });
  await one.kill();
  await one.kill();
  assert.equal(await one.isRunning(), false);
  assert.ok(await thrown(one.exec.run("true")) instanceof GoneError);
  assert.ok(await thrown(one.pty.create()) instanceof GoneError);
});

test("exec.run: results, limits, large output", async () => {
  const run = sandbox.exec.run.bind(sandbox.exec);
  assert.deepEqual(await run("echo out; echo err >&2; exit 3"), {
    exitCode: 3, stdout: "out\n", stderr: "err\n",
  });
  const env = { A: "1 2", B: "ü$x'\"" };
  assert.equal((await run('printf %s "$A|$B|$COLOUR"', { env })).stdout, "1 2|ü$x'\"|blue");
  assert.equal((await run("pwd", { cwd: "/tmp" })).stdout, "/tmp\n");
  const slow = await run("echo early; sleep 1.5; echo late");
  assert.equal(slow.stdout, "early\nlate\n");
  const killed = await run("echo begun; sleep 300", { timeout: 1 });
  assert.deepEqual([killed.exitCode, killed.stdout], [-1, "begun\n"]);
  assert.match(killed.stderr, /Process timed out$/);
  const { stdout } = await run("head -c 3000000 /dev/zero | tr '\\0' x");
  assert.ok(stdout === "x".repeat(3_000_000), `${stdout.length} characters`);
  const late = await thrown(run("sleep 60", { timeoutMs: 3_000 }));
  assert.ok(late instanceof ExecTimeoutError && late.execId !== "");
});

test("exec.start: streams, input, exit, kill, list", async () => {
  const got = { out: "", err: "", exit: 0, replayed: false };
  const session = await sandbox.exec.start("read a; echo got $a; cat; echo err >&2; exit 7", {
    onStdout: (data) => (got.out += Buffer.from(data).toString()),
    onStderr: (data) => (got.err += Buffer.from(data).toString()),
    onExit: (code) => (got.exit = code),
    onScrollbackEnd: () => (got.replayed = true),
  });
  session.sendStdin("one\n");
  session.sendStdin(new TextEncoder().encode("rest"));
  session.closeStdin();
  assert.equal(await session.done, 7);
  assert.deepEqual(got, { out: "got one\nrest", err: "err\n", exit: 7, replayed: true });
  const args = ["%s|", "$HOME", "a b"];
  const direct = await sandbox.exec.background("printf", { args });
  assert.equal(await direct.done, 0);
  const running = await sandbox.exec.start("sleep", { args: ["300"], cwd: "/tmp" });
  const info = (await sandbox.exec.list()).find(({ sessionID }) => sessionID === running.sessionId);
  assert.deepEqual([info?.command, info?.running, info?.attachedClients], ["sleep", true, 1]);
  await running.kill(15);
  assert.ok([143, -1].includes(await running.done));
  assert.ok(await thrown(sandbox.exec.kill("00000000")) instanceof NotFoundError);
  assert.ok(await thrown(sandbox.exec.attach("00000000")) instanceof NotFoundError);
  const timed = await sandbox.exec.start("sleep 300", { timeout: 1 });
  assert.equal(await timed.done, -1);
});

test("exec.attach: what was there, then what comes", async () => {
  const session = await sandbox.exec.start("echo before; read x; echo after $x");
  session.close();
  await session.done;
  assert.ok(session.disconnected);
  let out = "";
  const again = await sandbox.exec.attach(session.sessionId, {
    onStdout: (data) => (out += Buffer.from(data).toString()),
  });
  await eventually("the replay", () => out === "before\n");
  again.sendStdin("x\n");
  assert.equal(await again.done, 0);
  assert.equal(out, "before\nafter x\n");
});

test("exec.stream: in order, held back by a slow reader, killed when left", async () => {
  const pieces: ExecOutput[] = [];
  for await (const piece of sandbox.exec.stream("echo a; echo b >&2; exit 4")) pieces.push(piece);
  assert.deepEqual(pieces.map(({ type }) => type).sort(), ["exit", "stderr", "stdout"]);
  assert.deepEqual(pieces.at(-1), { type: "exit", exitCode: 4 });
  const hash = createHash("sha256");
  let bytes = 0;
  const args = ["%s|", "$HOME", "a b"];
  for await (const piece of sandbox.exec.stream("printf", { args })) {
    if (piece.type === "stdout") assert.equal(Buffer.from(piece.data).toString(), "$HOME|a b|");
  }
  // Much more than a server keeps for who comes late.
  const flood = "head -c 20000000 /dev/urandom | base64 -w 4000";
  const command = `${flood} | tee /tmp/all; sha256sum < /tmp/all > /tmp/sum`;
  for await (const piece of sandbox.exec.stream(command)) {
    if (piece.type !== "stdout") continue;
    hash.update(piece.data);
    bytes += piece.data.length;
    if (bytes < 400_000) await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const sum = (await sandbox.exec.run("cut -d' ' -f1 /tmp/sum")).stdout.trim();
  assert.equal(hash.digest("hex"), sum, `${bytes} bytes`);
  const left = sandbox.exec.stream("echo $$; exec sleep 300");
  for await (const piece of left) if (piece.type === "stdout") break;
  const id = left.session?.sessionId;
  await eventually("it is killed", async () => {
    const info = (await sandbox.exec.list()).find(({ sessionID }) => sessionID === id);
    return info?.running === false && KILLED.includes(info.exitCode ?? 0);
  });
});

test("exec.shell: one shell for many commands", async () => {
  const shell = await sandbox.exec.shell({ cwd: "/tmp", env: { FIRST: "1" } });
  assert.equal((await shell.run('echo "$PWD $FIRST"')).stdout, "/tmp 1\n");
  await shell.run("cd /; export SECOND=2; f() { echo called $1; } # a comment");
  assert.equal((await shell.run("pwd; echo $SECOND; f x")).stdout, "/\n2\ncalled x\n");
  let live = "";
  const result = await shell.run("echo o; echo e >&2; false", {
    onStdout: (data) => (live += Buffer.from(data).toString()),
  });
  assert.deepEqual(result, { exitCode: 1, stdout: "o\n", stderr: "e\n" });
  assert.equal(live, "o\n");
  const text = await shell.run("cat <<END\na __OC_ line\nEND\nprintf '\\n__OC_x_DONE__\\n'");
  assert.equal(text.stdout, "a __OC_ line\n\n__OC_x_DONE__\n");
  assert.deepEqual(await shell.run(""), { exitCode: 0, stdout: "", stderr: "" });
  const busy = shell.run("sleep 0.3; echo slow");
  await assert.rejects(shell.run("true"), ShellBusyError);
  assert.equal((await busy).stdout, "slow\n");
  const again = await sandbox.exec.reattachShell(shell.sessionId);
  assert.equal((await again.run("echo $SECOND")).stdout, "2\n");
  await assert.rejects(shell.run("exit 5"), ShellClosedError);
  await assert.rejects(again.run("true"), /bash exited with code 5/);
  await shell.close();
});

test("files: text, bytes, streams, folders", async () => {
  const { files } = sandbox;
  await files.write("notes/größe ?&#%.txt", "größe\n");
  assert.equal(await files.read("/home/sandbox/notes/größe ?&#%.txt"), "größe\n");
  const bytes = new Uint8Array(randomBytes(5_000_000));
  await files.write("/tmp/bytes", bytes);
  assert.ok(Buffer.from(await files.readBytes("/tmp/bytes")).equals(bytes));
  const pieces = [bytes.subarray(0, 7), bytes.subarray(7, 2_000_000), bytes.subarray(2_000_000)];
  const stream = new ReadableStream<Uint8Array>({
    pull(controller) {
      const piece = pieces.shift();
      if (piece === undefined) controller.close();
      else controller.enqueue(piece);
    },
  });
  await files.write("/tmp/streamed", stream);
  const hash = createHash("sha256");
  for await (const piece of await files.readStream("/tmp/streamed")) hash.update(piece);
  assert.equal(hash.digest("hex"), createHash("sha256").update(bytes).digest("hex"));
  await files.write("/tmp/blob", new Blob(["blob"]));
  assert.equal((await files.readBytes("/tmp/blob")).length, 4);
  await files.makeDir("/tmp/a/b");
  await files.makeDir("/tmp/a/b");
  await files.write("/tmp/a/empty", "");
  assert.deepEqual(await files.list("/tmp/a"), [
    { name: "b", isDir: true, path: "/tmp/a/b", size: (await files.list("/tmp/a"))[0]?.size },
    { name: "empty", isDir: false, path: "/tmp/a/empty", size: 0 },
  ]);
  assert.ok((await files.list()).some(({ name }) => name === "tmp"));
  const there = ["/tmp/a", "/tmp/a/empty", "/tmp/no"].map((one) => files.exists(one));
  assert.deepEqual(await Promise.all(there), [true, true, false]);
  await files.remove("/tmp/a");
  await files.remove("/tmp/a");
  assert.equal(await files.exists("/tmp/a"), false);
  const missing = await thrown(files.read("/no/such"));
  assert.ok(missing instanceof NotFoundError && /Failed to read \/no\/such: 404/.test(missing.message));
  assert.ok(await thrown(files.readBytes("/tmp")) instanceof BadRequestError);
  assert.ok(files instanceof Filesystem);
});

test("signed URLs work for whoever has them", async () => {
  await sandbox.files.write("/tmp/signed ü", "signed");
  const download = await sandbox.downloadUrl("/tmp/signed ü", { expiresIn: 60 });
  assert.equal(await (await fetch(download)).text(), "signed");
  const upload = await sandbox.uploadUrl("/tmp/uploaded");
  assert.equal((await fetch(upload, { method: "PUT", body: "up" })).status, 204);
  assert.equal(await sandbox.files.read("/tmp/uploaded"), "up");
  assert.ok(await thrown(sandbox.downloadUrl("/x", { expiresIn: 86_401 })) instanceof BadRequestError);
});

test("pty: output, size, input, end", async () => {
  let seen = "";
  const pty = await sandbox.pty.create({
    cols: 91, rows: 17, onOutput: (data) => (seen += Buffer.from(data).toString()),
  });
  pty.send("stty size\r");
  await eventually("its size", () => seen.includes("17 91\r\n"));
  await pty.resize(100, 40);
  pty.send(new TextEncoder().encode("stty size\r"));
  await eventually("its new size", () => seen.includes("40 100\r\n"));
  pty.close();
  await pty.done;
  const again = await sandbox.pty.attach(pty.sessionId);
  let replayed = "";
  again.send("exit\r");
  for await (const data of again) replayed += Buffer.from(data).toString();
  assert.match(replayed, /40 100\r\n/);
  await again.done;
  const killed = await sandbox.pty.create();
  await killed.kill();
  await killed.kill();
  assert.ok(await thrown(sandbox.pty.attach(killed.sessionId)) instanceof NotFoundError);
  assert.ok(await thrown(sandbox.pty.create({ cols: 70_000 })) instanceof BadRequestError);
});

test("checkpoints, forks and patches", async () => {
  await using base = await Sandbox.create({ memoryMB: 256, envs: { COLOUR: "blue" } });
  await base.files.write("file", "one");
  const made = await base.createCheckpoint("first", { kind: "disk_only" });
  assert.deepEqual([made.name, made.sandboxId], ["first", base.sandboxId]);
  assert.ok(await thrown(base.createCheckpoint("first")) instanceof ConflictError);
  assert.equal((await base.waitForCheckpoint(made.id)).status, "ready");
  assert.match((await thrown(base.waitForCheckpoint("no-such"))).message, /it is not there/);
  await base.files.write("file", "two");
  const { patch } = await Sandbox.createCheckpointPatch(made.id, {
    script: "echo patched > /etc/patched", description: "d",
  });
  assert.deepEqual((await Sandbox.listCheckpointPatches(made.id)).map(({ id }) => id), [patch.id]);
  {
    await using fork = await Sandbox.createFromCheckpoint(made.id, { envs: { MORE: "x" } });
    assert.equal(await fork.files.read("file"), "one");
    assert.equal((await fork.exec.run("echo $COLOUR $MORE; cat /etc/patched")).stdout, "blue x\npatched\n");
  }
  await Sandbox.deleteCheckpointPatch(made.id, patch.id);
  await Sandbox.deleteCheckpointPatch(made.id, patch.id);
  await base.restoreCheckpoint(made.id);
  assert.equal(await base.files.read("file"), "one");
  await base.deleteCheckpoint(made.id);
  await base.deleteCheckpoint(made.id);
  assert.deepEqual(await base.listCheckpoints(), []);
  assert.ok(await thrown(Sandbox.createFromCheckpoint(made.id)) instanceof NotFoundError);
});

test("tags", async () => {
  const tags = new Tags(`${need("OPENCOMPUTER_API_URL")}/api`, apiKey());
  const set = await tags.set(sandbox.sandboxId, { team: "a", env: "test" });
  assert.deepEqual(set.tags, { team: "a", env: "test" });
  assert.deepEqual((await tags.get(sandbox.sandboxId)).tags, set.tags);
  assert.ok((await tags.listKeys()).some(({ key }) => key === "team"));
  assert.deepEqual((await tags.set(sandbox.sandboxId, {})).tags, {});
});

test("logs: history, then what comes", async () => {
  await sandbox.exec.run("echo said-before");
  // What is printed gets into the log a little later.
  await eventually("the line is in the log", async () => {
    const lines: string[] = [];
    for await (const { line } of sandbox.logs({ tail: false, q: "said-" })) lines.push(line);
    return lines.includes("said-before");
  });
  const following = (async () => {
    for await (const { line } of sandbox.logs({ source: ["exec_stdout"] })) {
      if (line === "said-after") return line;
    }
    return undefined;
  })();
  await sandbox.exec.run("echo said-after");
  assert.equal(await following, "said-after");
});
