// A WebSocket client (RFC 6455) on Node's own HTTP client: no extension, no subprotocol.
//
// It pings every 20 s and gives up on a peer that has been silent for 50 s, so that a machine that
// vanished is noticed.

import { createHash, randomBytes } from "node:crypto";
import { request as requestPlain, type IncomingMessage } from "node:http";
import { request as requestTls } from "node:https";
import type { Duplex } from "node:stream";
import { ConnectionError, OpenComputerError, TimeoutError } from "../errors.js";
import type { ConnectOpts, Socket, SocketHandlers } from "../socket.js";

const MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const PING_MS = 20_000;
const SILENCE_MS_MAX = 50_000;
const CLOSE_MS_MAX = 2_000;
const MESSAGE_BYTES_MAX = 16 * 1024 * 1024;
const REFUSAL_BYTES_MAX = 64 * 1024;

const CONTINUATION = 0;
const TEXT = 1;
const BINARY = 2;
const CLOSE = 8;
const PING = 9;
const PONG = 10;

const NORMAL = 1000;
const NO_CODE = 1005;
const BROKEN = 1006;

/** Opens a connection; settles within `timeoutMs`. */
export function connect(opts: ConnectOpts): Promise<Socket> {
  const url = new URL(opts.url.replace(/^ws/, "http"));
  const nonce = randomBytes(16).toString("base64");
  const headers: Record<string, string> = {
    Connection: "Upgrade",
    Upgrade: "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": nonce,
  };
  if (opts.apiKey !== "") headers["X-API-Key"] = opts.apiKey;
  return new Promise((resolve, reject) => {
    const send = url.protocol === "https:" ? requestTls : requestPlain;
    const request = send(url, { headers, agent: false });
    const fail = (error: Error): void => {
      clearTimeout(timer);
      request.destroy();
      reject(error);
    };
    const timer = setTimeout(() => {
      const text = `Failed to ${opts.action}: no answer within ${opts.timeoutMs} ms`;
      fail(new TimeoutError(text));
    }, opts.timeoutMs);
    request.on("error", ({ message }) => {
      fail(new ConnectionError(`Failed to ${opts.action}: ${message}`));
    });
    request.on("response", (reply) => void readRefusal(reply).then((text) => {
      const id = reply.headers["x-request-id"];
      fail(opts.refused(reply.statusCode ?? 0, text, typeof id === "string" ? id : undefined));
    }));
    request.on("upgrade", (reply, stream, head) => {
      const expected = createHash("sha1").update(nonce + MAGIC).digest("base64");
      if (reply.headers["sec-websocket-accept"] !== expected) {
        stream.destroy();
        fail(new OpenComputerError(`Failed to ${opts.action}: not a WebSocket server`));
        return;
      }
      clearTimeout(timer);
      resolve(new Connection(stream, head, opts.handlers));
    });
    request.end();
  });
}

async function readRefusal(reply: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let size = 0;
  try {
    for await (const part of reply as AsyncIterable<Buffer>) {
      parts.push(part);
      size += part.length;
      if (size > REFUSAL_BYTES_MAX) break;
    }
  } catch {
    // What came so far has to do.
  }
  return Buffer.concat(parts).toString("utf8");
}

class Connection implements Socket {
  readonly #stream: Duplex;
  readonly #handlers: SocketHandlers;
  readonly #pulse: ReturnType<typeof setInterval>;
  #buffered: Buffer[] = [];
  #bufferedBytes = 0;
  #message: Buffer[] = [];
  #messageBytes = 0;
  #heard = Date.now();
  #paused = false;
  #closing = false;
  #code = BROKEN;
  #reason = "";

  constructor(stream: Duplex, head: Buffer, handlers: SocketHandlers) {
    this.#stream = stream;
    this.#handlers = handlers;
    stream.on("data", (bytes: Buffer) => this.#take(bytes));
    stream.on("end", () => stream.end());
    stream.on("error", ({ message }) => (this.#reason = message));
    stream.on("close", () => this.#ended());
    this.#pulse = setInterval(() => this.#beat(), PING_MS);
    // An open session alone keeps a program alive through its socket, not through this.
    this.#pulse.unref();
    // Later, so that whoever opened it has it in hand when the first message comes.
    if (head.length > 0) queueMicrotask(() => this.#take(head));
  }

  send(data: string | Uint8Array): void {
    if (this.#closing || this.#stream.destroyed) {
      throw new ConnectionError("the connection is closed");
    }
    const text = typeof data === "string";
    this.#frame(text ? TEXT : BINARY, text ? Buffer.from(data, "utf8") : Buffer.from(data));
  }

  close(): void {
    this.#shut(NORMAL);
  }

  pause(): void {
    this.#paused = true;
    this.#stream.pause();
  }

  resume(): void {
    this.#paused = false;
    this.#heard = Date.now();
    this.#stream.resume();
  }

  #beat(): void {
    if (this.#closing) return;
    // Nothing is heard while nothing is asked for.
    if (!this.#paused && Date.now() - this.#heard > SILENCE_MS_MAX) {
      this.#reason = "the server is silent";
      this.#stream.destroy();
    } else {
      this.#frame(PING, Buffer.alloc(0));
    }
  }

  #shut(code: number): void {
    if (this.#closing) return;
    const payload = Buffer.alloc(2);
    payload.writeUInt16BE(code);
    this.#frame(CLOSE, payload);
    this.#closing = true;
    this.#stream.resume();
    setTimeout(() => this.#stream.destroy(), CLOSE_MS_MAX).unref();
  }

  #ended(): void {
    clearInterval(this.#pulse);
    this.#closing = true;
    this.#handlers.onClose(this.#code, this.#reason);
  }

  #broken(reason: string): void {
    this.#reason = reason;
    this.#stream.destroy();
  }

  #frame(opcode: number, payload: Buffer): void {
    if (this.#closing || this.#stream.destroyed) return;
    const long = payload.length > 0xffff ? 8 : payload.length > 125 ? 2 : 0;
    const head = Buffer.alloc(2 + long + 4);
    head[0] = 0x80 | opcode;
    head[1] = 0x80 | (long === 8 ? 127 : long === 2 ? 126 : payload.length);
    if (long === 2) head.writeUInt16BE(payload.length, 2);
    if (long === 8) head.writeBigUInt64BE(BigInt(payload.length), 2);
    const mask = randomBytes(4);
    mask.copy(head, 2 + long);
    const masked = Buffer.allocUnsafe(payload.length);
    for (let i = 0; i < payload.length; i += 1) masked[i] = payload[i]! ^ mask[i & 3]!;
    this.#stream.write(head);
    this.#stream.write(masked);
  }

  #take(bytes: Buffer): void {
    this.#heard = Date.now();
    this.#buffered.push(bytes);
    this.#bufferedBytes += bytes.length;
    for (;;) {
      const frame = this.#next();
      if (frame === undefined) return;
      this.#handle(frame.final, frame.opcode, frame.payload);
    }
  }

  /** The next whole frame, if it has come. */
  #next(): { final: boolean; opcode: number; payload: Buffer } | undefined {
    if (this.#bufferedBytes < 2 || this.#stream.destroyed) return undefined;
    const head = this.#peek(Math.min(this.#bufferedBytes, 10));
    const short = head[1]! & 0x7f;
    const start = short === 127 ? 10 : short === 126 ? 4 : 2;
    if (head.length < start) return undefined;
    const size = this.#length(head, short);
    if ((head[1]! & 0x80) !== 0 || size > MESSAGE_BYTES_MAX) {
      this.#broken("the server sent what is no WebSocket frame");
      return undefined;
    }
    if (this.#bufferedBytes < start + size) return undefined;
    const whole = this.#peek(start + size);
    const rest = this.#buffered[0]!.subarray(start + size);
    this.#buffered = rest.length > 0 ? [rest, ...this.#buffered.slice(1)] : this.#buffered.slice(1);
    this.#bufferedBytes -= start + size;
    const payload = whole.subarray(start, start + size);
    return { final: (head[0]! & 0x80) !== 0, opcode: head[0]! & 0x0f, payload };
  }

  #length(head: Buffer, short: number): number {
    if (short === 127) return Number(head.readBigUInt64BE(2));
    return short === 126 ? head.readUInt16BE(2) : short;
  }

  /** The first `size` bytes, in one piece; they stay buffered. */
  #peek(size: number): Buffer {
    if (this.#buffered[0]!.length < size) this.#buffered = [Buffer.concat(this.#buffered)];
    return this.#buffered[0]!.subarray(0, size);
  }

  #handle(final: boolean, opcode: number, payload: Buffer): void {
    if (opcode === PING) this.#frame(PONG, payload);
    else if (opcode === CLOSE) this.#closed(payload);
    else if (opcode === TEXT || opcode === BINARY || opcode === CONTINUATION) {
      this.#message.push(payload);
      this.#messageBytes += payload.length;
      if (this.#messageBytes > MESSAGE_BYTES_MAX) return this.#broken("a message is too large");
      if (!final) return;
      // A copy: what is kept of it must not keep the buffer it came in.
      const whole = new Uint8Array(Buffer.concat(this.#message));
      [this.#message, this.#messageBytes] = [[], 0];
      this.#handlers.onMessage(whole);
    } else if (opcode !== PONG) {
      this.#broken("the server sent what is no WebSocket frame");
    }
  }

  #closed(payload: Buffer): void {
    this.#code = payload.length >= 2 ? payload.readUInt16BE(0) : NO_CODE;
    this.#reason = payload.subarray(2).toString("utf8");
    this.#shut(this.#code === NO_CODE ? NORMAL : this.#code);
    this.#stream.end();
  }
}
