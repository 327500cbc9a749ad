// Sandbox: downloadUrl, uploadUrl; used by a program that knows nothing but the URL.

import assert from "node:assert/strict";
import { check } from "./harness.mjs";

const FOLDER = "/home/sandbox/signed";

export async function signed(_sdk, sandbox) {
  await check("Sandbox.downloadUrl", "opens the file to whoever has it", async () => {
    const path = `${FOLDER}/a b&c=d?e#f%20ü.txt`;
    await sandbox.files.write(path, "signed");
    const url = await sandbox.downloadUrl(path);
    const reply = await fetch(url);
    assert.deepEqual([reply.status, await reply.text()], [200, "signed"]);
    assert.equal((await fetch(url, { method: "PUT", body: "x" })).status, 405);
    const forged = await fetch(url.slice(0, -1) + (url.endsWith("0") ? "1" : "0"));
    assert.deepEqual([forged.status, (await forged.json()).error], [403, "invalid signature"]);
  });
  await check("Sandbox.downloadUrl", "at most a day, and then no more", async () => {
    await assert.rejects(sandbox.downloadUrl("a", { expiresIn: 86_401 }), /400.*86400/);
    const url = await sandbox.downloadUrl("/etc/hostname", { expiresIn: 1 });
    await new Promise((done) => setTimeout(done, 1100));
    const late = await fetch(url);
    assert.deepEqual([late.status, (await late.json()).error], [403, "signed URL expired"]);
  });
  await check("Sandbox.uploadUrl", "writes the file for whoever has it", async () => {
    const path = `${FOLDER}/new/upload.bin`;
    const url = await sandbox.uploadUrl(path, { expiresIn: 60 });
    const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
    assert.equal((await fetch(url, { method: "PUT", body: bytes })).status, 204);
    assert.deepEqual(await sandbox.files.readBytes(path), bytes);
  });
}
