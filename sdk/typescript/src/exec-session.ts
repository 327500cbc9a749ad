// One attached exec session: messages of one type byte and a payload.

import "./dispose.js";
import { type Client } from "./http.js";
import { open, pieces, type Socket } from "./socket.js";

export interface ExecCallbacks {
  onStdout?: ((data: Uint8Array) => void) | undefined;
  onStderr?: ((data: Uint8Array) => void) | undefined;
  /** -1: the connection ended before the command told its exit. */
  onExit?: ((exitCode: number) => void) | undefined;
  /** What follows is new: everything before was there when the client attached. */
  onScrollbackEnd?: (() => void) | undefined;
}

const STDIN = 0;
const STDOUT = 1;
const STDERR = 2;
const EXIT = 3;
const REPLAY_END = 4;

/** A running command with its input and output. Closing it leaves the command alone. */
export class ExecSession {
  readonly sessionId: string;
  /** The exit code; -1 when the connection ended without one. It never rejects. */
  readonly done: Promise<number>;
  readonly #kill: (signal?: number) => Promise<void>;
  readonly #callbacks: ExecCallbacks;
  #socket: Socket | undefined;
  #finish: (code: number) => void = () => undefined;
  #exitCode: number | undefined;
  #closed = false;

  private constructor(
    sessionId: string,
    kill: (signal?: number) => Promise<void>,
    callbacks: ExecCallbacks,
  ) {
    this.sessionId = sessionId;
    this.#kill = kill;
    this.#callbacks = callbacks;
    this.done = new Promise((resolve) => (this.#finish = resolve));
  }

  /** @internal Sessions come from `sandbox.exec`. */
  static async open(
    client: Client,
    path: string,
    sessionId: string,
    kill: (signal?: number) => Promise<void>,
    callbacks: ExecCallbacks,
  ): Promise<ExecSession> {
    const session = new ExecSession(sessionId, kill, callbacks);
    session.#socket = await open(client, path, "open the WebSocket of an exec session", {
      onMessage: (message) => session.#take(message),
      onClose: () => session.#ended(),
    });
    return session;
  }

  /** The connection ended although the command had not: `exec.attach` goes on with it. */
  get disconnected(): boolean {
    return this.#closed && this.#exitCode === undefined;
  }

  /** Throws when the session is closed. */
  sendStdin(data: string | Uint8Array): void {
    for (const piece of pieces(data)) this.#send(piece);
  }

  /** Tells the command that no more input comes. */
  closeStdin(): void {
    this.#send(new Uint8Array());
  }

  /** Signals the process group. Default: 9 (SIGKILL). */
  kill(signal?: number): Promise<void> {
    return this.#kill(signal);
  }

  /** Lets go of the session; the command goes on. */
  close(): void {
    this.#socket?.close();
  }

  /** @internal Holds the output back at the server while a reader is slow. */
  hold(back: boolean): void {
    if (back) this.#socket?.pause();
    else this.#socket?.resume();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #send(payload: Uint8Array): void {
    const message = new Uint8Array(payload.length + 1);
    message[0] = STDIN;
    message.set(payload, 1);
    this.#socket?.send(message);
  }

  #take(message: Uint8Array): void {
    const payload = message.subarray(1);
    const { onStdout, onStderr, onScrollbackEnd } = this.#callbacks;
    if (message[0] === STDOUT) onStdout?.(payload);
    else if (message[0] === STDERR) onStderr?.(payload);
    else if (message[0] === REPLAY_END) onScrollbackEnd?.();
    else if (message[0] === EXIT && payload.length >= 4) {
      const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
      this.#exit(view.getInt32(0));
    }
  }

  #exit(code: number): void {
    if (this.#exitCode !== undefined) return;
    this.#exitCode = code;
    this.#finish(code);
    this.#callbacks.onExit?.(code);
  }

  #ended(): void {
    this.#closed = true;
    if (this.#exitCode !== undefined) return;
    this.#finish(-1);
    this.#callbacks.onExit?.(-1);
  }
}
