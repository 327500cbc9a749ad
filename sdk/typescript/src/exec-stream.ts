// A command's output as something to loop over, with a bound on what waits to be read.

import type { ExecCallbacks, ExecSession } from "./exec-session.js";

export type ExecOutput =
  | { type: "stdout"; data: Uint8Array }
  | { type: "stderr"; data: Uint8Array }
  /** The last one. -1: the connection ended before the command told its exit. */
  | { type: "exit"; exitCode: number };

/** More than this is left at the server until it is read; it cuts a client off after 30 s of that. */
const WAITING_BYTES_MAX = 16 * 1024 * 1024;

/** From `sandbox.exec.stream`. The command starts when the loop does. */
export class ExecStream implements AsyncIterableIterator<ExecOutput> {
  readonly #start: (callbacks: ExecCallbacks) => Promise<ExecSession>;
  #session: ExecSession | undefined;
  #waiting: ExecOutput[] = [];
  #waitingBytes = 0;
  #wake: () => void = () => undefined;
  #ended = false;

  /** @internal */
  constructor(start: (callbacks: ExecCallbacks) => Promise<ExecSession>) {
    this.#start = start;
  }

  /** Once it has started. */
  get session(): ExecSession | undefined {
    return this.#session;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<ExecOutput>> {
    if (this.#ended) return { done: true, value: undefined };
    this.#session ??= await this.#start({
      onStdout: (data) => this.#put({ type: "stdout", data }, data.length),
      onStderr: (data) => this.#put({ type: "stderr", data }, data.length),
      onExit: (exitCode) => this.#put({ type: "exit", exitCode }, 0),
    });
    while (this.#waiting.length === 0) {
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const value = this.#waiting.shift() as ExecOutput;
    if (value.type === "exit") {
      this.#ended = true;
      this.#session.close();
    } else {
      this.#waitingBytes -= value.data.length;
      if (this.#waitingBytes < WAITING_BYTES_MAX) this.#session.hold(false);
    }
    return { done: false, value };
  }

  /** Called when a loop is left early: kills the command. */
  async return(): Promise<IteratorResult<ExecOutput>> {
    const session = this.#session;
    if (session !== undefined && !this.#ended) {
      this.#ended = true;
      session.close();
      await session.kill();
    }
    this.#ended = true;
    return { done: true, value: undefined };
  }

  #put(piece: ExecOutput, bytes: number): void {
    this.#waiting.push(piece);
    this.#waitingBytes += bytes;
    // The first pieces may come before `start` has given the session.
    if (this.#waitingBytes >= WAITING_BYTES_MAX) this.#session?.hold(true);
    this.#wake();
  }
}
