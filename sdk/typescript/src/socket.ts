// What both kinds of WebSocket look like from here, and how one is opened.

import { connect } from "#platform";
import { type Client } from "./http.js";

/** An open connection. Messages from the server come to its handlers, in order. */
export interface Socket {
  /** Throws when the connection is closed. */
  send(data: string | Uint8Array): void;
  close(): void;
  /** Asks for no more messages, where the platform can; those on the way still come. */
  pause(): void;
  resume(): void;
}

export interface SocketHandlers {
  onMessage(data: Uint8Array): void;
  /** Once, after the last message. 1006: the connection broke. */
  onClose(code: number, reason: string): void;
}

/** What a platform is told to open a socket. */
export interface ConnectOpts {
  /** `ws:` or `wss:`, without a credential. */
  url: string;
  apiKey: string;
  timeoutMs: number;
  handlers: SocketHandlers;
  /** Makes the error for an upgrade that was answered with a status. */
  refused(status: number, text: string, requestId: string | undefined): Error;
  /** For messages: `Failed to <action>: …`. */
  action: string;
}

/** Longest message the server takes is 1 MiB. */
const PIECE_BYTES_MAX = 256 * 1024;

/** Opens a socket below `/api`; a refusal is the server's own error, where the platform shows it. */
export function open(
  client: Client,
  path: string,
  action: string,
  handlers: SocketHandlers,
): Promise<Socket> {
  return connect({
    url: client.apiUrl.replace(/^http/, "ws") + path,
    apiKey: client.apiKey,
    timeoutMs: client.requestTimeoutMs,
    handlers,
    refused: (status, text, id) => client.refused(action, status, text, id),
    action,
  });
}

/** Bytes in pieces that fit into a message. */
export function* pieces(data: string | Uint8Array): Generator<Uint8Array> {
  const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
  for (let start = 0; start < bytes.length; start += PIECE_BYTES_MAX) {
    yield bytes.subarray(start, start + PIECE_BYTES_MAX);
  }
}
