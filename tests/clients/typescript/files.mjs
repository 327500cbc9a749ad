// files: read, readBytes, write, list, makeDir, remove, exists.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { check } from "./harness.mjs";

const FOLDER = "/home/sandbox/suite";

export async function files(_sdk, { files, exec }) {
  const run = async (command) => (await exec.run(command)).stdout;

  await check("files.makeDir", "with parents, and again", async () => {
    await files.makeDir(`${FOLDER}/a/b`);
    await files.makeDir(`${FOLDER}/a/b`);
    assert.equal(await run(`stat -c '%F %U' ${FOLDER}/a/b`), "directory sandbox\n");
  });
  await check("files.makeDir", "a file is in the way", async () => {
    await files.write(`${FOLDER}/file`, "x");
    await assert.rejects(files.makeDir(`${FOLDER}/file`), /400/);
  });
  await check("files.write", "text; parents are made; the sandbox owns it", async () => {
    await files.write(`${FOLDER}/new/text.txt`, "grüße\n");
    const path = `${FOLDER}/new/text.txt`;
    const shown = await run(`cat ${path}; stat -c '%a %U %G' ${path}`);
    assert.equal(shown, "grüße\n644 sandbox sandbox\n");
    assert.equal(await run(`echo more >> ${path} && cat ${path}`), "grüße\nmore\n");
  });
  await check("files.write", "replaces what was there", async () => {
    await files.write(`${FOLDER}/replaced`, "a longer text than the next");
    await files.write(`${FOLDER}/replaced`, "short");
    assert.equal(await files.read(`${FOLDER}/replaced`), "short");
    await files.write(`${FOLDER}/replaced`, "");
    assert.equal(await files.read(`${FOLDER}/replaced`), "");
  });
  await check("files.write", "a stream", async () => {
    const parts = ["one ", "two ", "three"].map((part) => new TextEncoder().encode(part));
    const stream = new ReadableStream({
      pull(controller) {
        if (parts.length) controller.enqueue(parts.shift());
        else controller.close();
      },
    });
    await files.write(`${FOLDER}/stream`, stream);
    assert.equal(await files.read(`${FOLDER}/stream`), "one two three");
  });
  await check("files.read", "relative paths start at the home folder", async () => {
    await files.write("relative.txt", "here");
    assert.equal(await run("cat /home/sandbox/relative.txt"), "here");
    assert.equal(await files.read("relative.txt"), "here");
  });
  await check("files.read", "odd names", async () => {
    const path = `${FOLDER}/a b&c=d?e#f%20ü.txt`;
    await files.write(path, "odd");
    assert.equal(await files.read(path), "odd");
  });
  await check("files.read", "missing and folders are refused", async () => {
    await assert.rejects(files.read(`${FOLDER}/missing`), /404/);
    await assert.rejects(files.read(FOLDER), /400/);
  });
  await check("files.readBytes", "every byte value", async () => {
    const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
    await files.write(`${FOLDER}/bytes`, bytes);
    assert.deepEqual(await files.readBytes(`${FOLDER}/bytes`), bytes);
  });
  await check("files.readBytes", "5 MB there and back", async () => {
    const bytes = randomBytes(5_000_000);
    const sum = createHash("sha256").update(bytes).digest("hex");
    await files.write(`${FOLDER}/large`, bytes);
    assert.equal(await run(`sha256sum < ${FOLDER}/large`), `${sum}  -\n`);
    const back = await files.readBytes(`${FOLDER}/large`);
    assert.equal(createHash("sha256").update(back).digest("hex"), sum);
  });
  await check("files.list", "sorted, hidden ones too, with every field", async () => {
    await run(`mkdir -p ${FOLDER}/list/sub; cd ${FOLDER}/list; printf 12345 > b; touch .a`);
    const path = (name) => `${FOLDER}/list/${name}`;
    const entries = await files.list(`${FOLDER}/list`);
    assert.deepEqual(entries.filter((one) => !one.isDir), [
      { name: ".a", isDir: false, size: 0, path: path(".a") },
      { name: "b", isDir: false, size: 5, path: path("b") },
    ]);
    assert.deepEqual(entries.map((one) => one.name), [".a", "b", "sub"]);
    assert.deepEqual([entries[2].isDir, entries[2].path], [true, path("sub")]);
  });
  await check("files.list", "the root by default, empty, missing", async () => {
    const names = (await files.list()).map((one) => one.name);
    for (const name of ["home", "tmp", "usr", "workspace"]) assert.ok(names.includes(name), name);
    assert.deepEqual(await files.list(`${FOLDER}/a/b`), []);
    await assert.rejects(files.list(`${FOLDER}/missing`), /404/);
  });
  await check("files.exists", "a file, nothing", async () => {
    assert.equal(await files.exists(`${FOLDER}/bytes`), true);
    assert.equal(await files.exists(`${FOLDER}/missing`), false);
  });
  await check("files.remove", "a file, a tree, nothing", async () => {
    await files.remove(`${FOLDER}/bytes`);
    assert.equal(await files.exists(`${FOLDER}/bytes`), false);
    await files.remove(FOLDER);
    await assert.rejects(files.list(FOLDER), /404/);
    await files.remove(FOLDER);
  });
}
