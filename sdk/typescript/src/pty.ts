// Shells on a terminal.

import "./dispose.js";
import { path, type Client } from "./http.js";
import { open, pieces, type Socket } from "./socket.js";

export interface PtyAttachOpts {
  /** Without it, loop over the session to read. */
  onOutput?: (data: Uint8Array) => void;
}

export interface PtyOpts extends PtyAttachOpts {
  /** Default 80. */
  cols?: number;
  /** Default 24. */
  rows?: number;
  /** Default `/bin/bash`. */
  shell?: string;
  /** Default `/home/sandbox`. */
  cwd?: string;
  envs?: Record<string, string>;
}

/** Of output nobody reads, the newest is kept. */
const UNREAD_BYTES_MAX = 1024 * 1024;

/** Opens terminals in one sandbox. */
export class Pty {
  readonly #client: Client;
  readonly #sandboxId: string;

  /** @internal Sandboxes have one as `pty`. */
  constructor(client: Client, sandboxId: string) {
    this.#client = client;
    this.#sandboxId = sandboxId;
  }

  /** Starts a shell on a terminal and attaches to it. */
  async create(opts: PtyOpts = {}): Promise<PtySession> {
    const { cols = 80, rows = 24, shell, cwd, envs } = opts;
    const { sessionID } = await this.#client.json<{ sessionID: string }>({
      action: "create PTY",
      method: "POST",
      path: path`/sandboxes/${this.#sandboxId}/pty`,
      json: { cols, rows, shell, cwd, envs },
      repeat: "keyed",
    });
    return this.attach(sessionID, opts);
  }

  /** Attaches to a terminal; what it last showed (at most 1 MiB) comes first. */
  attach(sessionId: string, opts: PtyAttachOpts = {}): Promise<PtySession> {
    return PtySession.open(this.#client, this.#sandboxId, sessionId, opts);
  }
}

/** An attached terminal. Closing it leaves the shell alone. */
export class PtySession implements AsyncIterable<Uint8Array> {
  readonly sessionId: string;
  /** Resolves when the shell has ended or the connection is closed. It never rejects. */
  readonly done: Promise<void>;
  readonly #client: Client;
  readonly #path: string;
  readonly #onOutput: ((data: Uint8Array) => void) | undefined;
  #socket: Socket | undefined;
  #finish: () => void = () => undefined;
  #unread: Uint8Array[] = [];
  #unreadBytes = 0;
  #wake: () => void = () => undefined;
  #ended = false;

  private constructor(client: Client, at: string, sessionId: string, opts: PtyAttachOpts) {
    this.#client = client;
    this.#path = at;
    this.sessionId = sessionId;
    this.#onOutput = opts.onOutput;
    this.done = new Promise((resolve) => (this.#finish = resolve));
  }

  /** @internal Sessions come from `sandbox.pty`. */
  static async open(
    client: Client,
    sandboxId: string,
    sessionId: string,
    opts: PtyAttachOpts,
  ): Promise<PtySession> {
    const at = path`/sandboxes/${sandboxId}/pty/${sessionId}`;
    const session = new PtySession(client, at, sessionId, opts);
    session.#socket = await open(client, at, "open the WebSocket of a PTY", {
      onMessage: (data) => session.#take(data),
      onClose: () => session.#end(),
    });
    return session;
  }

  /** What a user types. Throws when the session is closed. */
  send(data: string | Uint8Array): void {
    for (const piece of pieces(data)) this.#socket?.send(piece);
  }

  resize(cols: number, rows: number): Promise<void> {
    return this.#client.done({
      action: "resize PTY",
      method: "POST",
      path: `${this.#path}/resize`,
      json: { cols, rows },
      repeat: "safe",
    });
  }

  /** Ends the shell. One that has ended is fine. */
  async kill(): Promise<void> {
    await this.#client.gone({ action: "kill PTY", method: "DELETE", path: this.#path });
    this.close();
  }

  /** Lets go of the terminal; the shell goes on for up to ten minutes without a client. */
  close(): void {
    this.#socket?.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Output as it comes, for sessions without `onOutput`; ends with the session. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void> {
    for (;;) {
      const data = this.#unread.shift();
      if (data !== undefined) {
        this.#unreadBytes -= data.length;
        yield data;
      } else if (this.#ended) {
        return;
      } else {
        await new Promise<void>((resolve) => (this.#wake = resolve));
      }
    }
  }

  #take(data: Uint8Array): void {
    if (this.#onOutput !== undefined) return this.#onOutput(data);
    this.#unread.push(data);
    this.#unreadBytes += data.length;
    while (this.#unreadBytes > UNREAD_BYTES_MAX && this.#unread.length > 1) {
      this.#unreadBytes -= this.#unread.shift()?.length ?? 0;
    }
    this.#wake();
  }

  #end(): void {
    this.#ended = true;
    this.#finish();
    this.#wake();
  }
}
