// Goal: the WebSocket that the package brings for Node.js keeps to the standard, tells why it was
// refused, and never waits for ever.
// Method: a server of our own that writes frames byte by byte.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import type { Duplex } from "node:stream";
import { test, type TestContext } from "node:test";
import * as sdk from "@opencomputer/sdk";
import { Fake, json, thrown } from "./support.js";

const SESSION = { sessionID: "00aa", sandboxID: "sb-1", status: "running" };

function frame(opcode: number, payload: Buffer | string, final = true): Buffer {
  const bytes = Buffer.from(payload);
  const head = Buffer.from([(final ? 0x80 : 0) | opcode, Math.min(bytes.length, 126)]);
  if (bytes.length < 126) return Buffer.concat([head, bytes]);
  const long = Buffer.alloc(bytes.length > 0xffff ? 8 : 2);
  if (long.length === 8) {
    head[1] = 127;
    long.writeBigUInt64BE(BigInt(bytes.length));
  } else {
    long.writeUInt16BE(bytes.length);
  }
  return Buffer.concat([head, long, bytes]);
}

/** Frames of a client, unmasked; masks are required. */
function read(bytes: Buffer): { opcode: number; payload: Buffer }[] {
  const frames = [];
  for (let at = 0; at < bytes.length; ) {
    assert.ok((bytes[at + 1]! & 0x80) !== 0, "clients mask");
    const short = bytes[at + 1]! & 0x7f;
    const long = short === 127 ? 8 : short === 126 ? 2 : 0;
    const size = long === 8 ? Number(bytes.readBigUInt64BE(at + 2))
      : long === 2 ? bytes.readUInt16BE(at + 2) : short;
    const start = at + 2 + long + 4;
    const mask = bytes.subarray(start - 4, start);
    const payload = Buffer.from(bytes.subarray(start, start + size).map((b, i) => b ^ mask[i % 4]!));
    frames.push({ opcode: bytes[at]! & 0x0f, payload });
    at = start + size;
  }
  return frames;
}

/** A sandbox of a server whose sockets `talk`. */
async function against(
  t: TestContext,
  talk: (socket: Duplex, headers: NodeJS.Dict<string | string[]>) => void,
  accept = true,
): Promise<sdk.Sandbox> {
  const fake = await Fake.start(t, (_, reply) => json(reply, 200, SESSION));
  fake.server.on("upgrade", (request, socket) => {
    const key = `${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`;
    const answer = accept ? createHash("sha1").update(key).digest("base64") : "wrong";
    socket.on("error", () => undefined);
    socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n" +
      `Connection: Upgrade\r\nSec-WebSocket-Accept: ${answer}\r\n\r\n`);
    talk(socket, request.headers);
  });
  const opts = { apiUrl: fake.url, apiKey: "osb_key-of-this-test", requestTimeoutMs: 20_000 };
  return sdk.Sandbox.connect("sb-1", opts);
}

test("frames of every kind arrive, in any pieces", async (t) => {
  const big = Buffer.alloc(200_000, "b");
  const sandbox = await against(t, (socket, headers) => {
    assert.equal(headers["x-api-key"], "osb_key-of-this-test");
    const bytes = Buffer.concat([
      frame(2, "\x01one "),
      frame(9, "ping"),
      frame(2, "\x01t", false), frame(10, "pong"), frame(0, "w", false), frame(0, "o "),
      frame(2, Buffer.concat([Buffer.from([1]), big])),
      frame(2, "\x04"),
      frame(2, Buffer.from([3, 0xff, 0xff, 0xff, 0xfe])),
      frame(8, Buffer.from([0x03, 0xe8])),
    ]);
    for (let at = 0; at < 60; at += 1) socket.write(bytes.subarray(at, at + 1));
    socket.write(bytes.subarray(60));
  });
  let out = "";
  let replayed = false;
  const session = await sandbox.exec.attach("00aa", {
    onStdout: (data) => (out += Buffer.from(data).toString()),
    onScrollbackEnd: () => (replayed = true),
  });
  assert.equal(await session.done, -2);
  assert.ok(out === `one two ${big}`, `${out.length} characters`);
  assert.ok(replayed && !session.disconnected);
});

test("what is sent is masked and in frames, and a ping gets its pong", async (t) => {
  let came = Buffer.alloc(0);
  const sandbox = await against(t, (socket) => {
    socket.write(frame(9, "are you there"));
    socket.on("data", (bytes: Buffer) => {
      came = Buffer.concat([came, bytes]);
      // All that follows, its heads and masks included.
      if (came.length >= 300_070) socket.end(frame(8, Buffer.from([0x03, 0xe8])));
    });
  });
  const session = await sandbox.exec.attach("00aa");
  session.sendStdin("short");
  session.sendStdin(new Uint8Array(300_000));
  session.closeStdin();
  await new Promise((resolve) => setTimeout(resolve, 300));
  session.close();
  assert.equal(await session.done, -1);
  const frames = read(came);
  const data = frames.filter(({ opcode }) => opcode === 2).map(({ payload }) => payload.length);
  assert.deepEqual(data, [6, 256 * 1024 + 1, 300_000 - 256 * 1024 + 1, 1]);
  assert.ok(frames.some(({ opcode, payload }) => opcode === 10 && `${payload}` === "are you there"));
  assert.throws(() => session.sendStdin("late"), sdk.ConnectionError);
});

test("a refusal is the server's own error", async (t) => {
  const fake = await Fake.start(t, (seen, reply) => {
    const refused = seen.url.includes("/exec/");
    json(reply, refused ? 404 : 200, refused ? { error: "session not found" } : SESSION);
  });
  const sandbox = await sdk.Sandbox.connect("sb-1", { apiUrl: fake.url, apiKey: "" });
  const error = await thrown(sandbox.exec.attach("00aa"));
  assert.ok(error instanceof sdk.NotFoundError);
  assert.equal(error.reason, "session not found");
});

test("a server that is no WebSocket server, and one that says nothing", async (t) => {
  const wrong = await against(t, () => undefined, false);
  assert.match((await thrown(wrong.exec.attach("00aa"))).message, /not a WebSocket server/);
  const fake = await Fake.start(t, (_, reply) => json(reply, 200, SESSION));
  fake.server.on("upgrade", () => undefined);
  const opts = { apiUrl: fake.url, apiKey: "", requestTimeoutMs: 1_500 };
  const silent = await sdk.Sandbox.connect("sb-1", opts);
  assert.ok(await thrown(silent.exec.attach("00aa")) instanceof sdk.TimeoutError);
});

test("frames that break the standard end the connection", async (t) => {
  for (const bad of [frame(3, "x"), Buffer.from([0x82, 0x81, 0, 0, 0, 0, 1]), Buffer.from([
    0x82, 127, 0, 0, 1, 0, 0, 0, 0, 0,
  ])]) {
    const sandbox = await against(t, (socket) => void socket.write(bad));
    const session = await sandbox.exec.attach("00aa");
    assert.equal(await session.done, -1);
    assert.ok(session.disconnected);
  }
});

test("a connection that breaks ends everything that waits for it", async (t) => {
  const sandbox = await against(t, (socket) => {
    socket.write(frame(2, "\x04"));
    setTimeout(() => socket.destroy(), 100);
  });
  const session = await sandbox.exec.attach("00aa");
  assert.equal(await session.done, -1);
  const shell = await sandbox.exec.reattachShell("00aa");
  assert.ok(await thrown(shell.run("true")) instanceof sdk.ShellClosedError);
  const pieces = [];
  for await (const piece of sandbox.exec.stream("x")) pieces.push(piece);
  assert.deepEqual(pieces, [{ type: "exit", exitCode: -1 }]);
  const pty = await sandbox.pty.attach("00aa");
  for await (const piece of pty) assert.equal(piece.length, 1);
  await pty.done;
});
