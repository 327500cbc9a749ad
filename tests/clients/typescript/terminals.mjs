// pty.create and its session: send, close, onOutput.

import assert from "node:assert/strict";
import { check, eventually, plain } from "./harness.mjs";

export async function terminals(sdk, sandbox) {
  const decoder = new TextDecoder();
  let seen = "";
  const onOutput = (bytes) => {
    assert.ok(bytes instanceof Uint8Array);
    seen += decoder.decode(bytes, { stream: true });
  };
  const shows = async (text) => {
    await eventually(JSON.stringify(text), 20_000, () => seen.includes(text));
    seen = "";
  };
  const session = await check("pty.create", "a prompt from before the socket", async () => {
    const opened = await sandbox.pty.create({ cols: 91, rows: 17, onOutput });
    assert.match(opened.sessionId, /\S/);
    await shows("$ ");
    return opened;
  });
  if (!session) return;
  await check("pty.create", "text and bytes are typed", async () => {
    session.send("stty size\r");
    await shows("17 91\r\n");
    session.send(new TextEncoder().encode("echo gr\u00fcn\r"));
    await shows("\rgr\u00fcn\r\n");
  });
  await check("pty.create", "keys are signals", async () => {
    session.send("sleep 300\r");
    await shows("sleep 300\r\n");
    await new Promise((resolve) => setTimeout(resolve, 500));
    session.send("\u0003");
    await shows("^C");
    session.send("echo code=$?\r");
    await shows("code=130\r\n");
  });
  await check("pty.create", "closing leaves the shell alone", async () => {
    session.close();
    const path = `/sandboxes/${sandbox.sandboxId}/pty/${session.sessionId}`;
    assert.equal((await plain("POST", `${path}/resize`, { cols: 80, rows: 24 })).status, 200);
    assert.equal((await plain("DELETE", path)).status, 204);
    assert.equal((await plain("DELETE", path)).status, 404);
  });
  await check("pty.create", "80 by 24 unless told otherwise", async () => {
    const opened = await sandbox.pty.create({ onOutput });
    await shows("$ ");
    opened.send("stty size; exit\r");
    await shows("24 80\r\n");
  });
  await check("pty.create", "a size that no terminal has", async () => {
    await assert.rejects(sandbox.pty.create({ cols: 70_000 }), /400/);
  });
}
