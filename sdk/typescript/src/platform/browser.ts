// What browsers and other runtimes without Node's modules bring.

import { ConnectionError, OpenComputerError, TimeoutError } from "../errors.js";
import type { ConnectOpts, Socket } from "../socket.js";

/** A file of an image: its path below the folder, and its bytes. */
export interface LocalFile {
  relativePath: string;
  bytes: Uint8Array;
}

const NO_FILES = "local files can only be read in Node.js";

export function randomUUID(): string {
  return crypto.randomUUID();
}

export async function hmacSha256(key: Uint8Array, data: Uint8Array): Promise<Uint8Array> {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const usable = key as Uint8Array<ArrayBuffer>;
  const imported = await crypto.subtle.importKey("raw", usable, algorithm, false, ["sign"]);
  const signed = await crypto.subtle.sign("HMAC", imported, data as Uint8Array<ArrayBuffer>);
  return new Uint8Array(signed);
}

export function sha256Hex(_text: string): string {
  throw new OpenComputerError("cacheKey() needs Node.js");
}

export function readLocalFile(_path: string): Uint8Array {
  throw new OpenComputerError(NO_FILES);
}

export function readLocalDir(_path: string): LocalFile[] {
  throw new OpenComputerError(NO_FILES);
}

/** The global WebSocket can't set headers, so the key goes into the query. */
export function connect(opts: ConnectOpts): Promise<Socket> {
  const { handlers, action } = opts;
  const query = opts.apiKey === "" ? "" : `?api_key=${encodeURIComponent(opts.apiKey)}`;
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(opts.url + query);
    socket.binaryType = "arraybuffer";
    let opened = false;
    const timer = setTimeout(() => {
      const late = `Failed to ${action}: no answer within ${opts.timeoutMs} ms`;
      reject(new TimeoutError(late));
      socket.close();
    }, opts.timeoutMs);
    socket.onmessage = ({ data }: MessageEvent<ArrayBuffer | string>) => {
      const text = typeof data === "string";
      handlers.onMessage(text ? new TextEncoder().encode(data) : new Uint8Array(data));
    };
    socket.onopen = () => {
      opened = true;
      clearTimeout(timer);
      resolve(wrap(socket));
    };
    const refused = (): void => {
      clearTimeout(timer);
      // Browsers do not tell a page why an upgrade was refused.
      reject(new ConnectionError(`Failed to ${action}: the WebSocket was refused`));
    };
    socket.onclose = ({ code, reason }) => {
      if (opened) handlers.onClose(code, reason);
      else refused();
    };
    // Not every runtime has a close follow on this.
    socket.onerror = () => {
      if (!opened) refused();
    };
  });
}

function wrap(socket: WebSocket): Socket {
  return {
    send(data) {
      if (socket.readyState !== WebSocket.OPEN) {
        throw new ConnectionError("the connection is closed");
      }
      socket.send(data as string | Uint8Array<ArrayBuffer>);
    },
    close: () => socket.close(),
    pause: () => undefined,
    resume: () => undefined,
  };
}
