// One bash that takes one command after the other. The end of each command is found by a marker on
// each of its streams, made anew for every command.

import "./dispose.js";
import { randomUUID } from "#platform";
import type { ProcessResult } from "./exec.js";
import type { ExecCallbacks, ExecSession } from "./exec-session.js";
import { ShellBusyError, ShellClosedError } from "./errors.js";

export interface ShellOpts {
  cwd?: string;
  env?: Record<string, string>;
}

export interface ShellRunOpts {
  onStdout?: (data: Uint8Array) => void;
  onStderr?: (data: Uint8Array) => void;
}

const CLOSE_MS_MAX = 5_000;

interface Running {
  stdout: Until;
  stderr: Until;
  resolve(result: ProcessResult): void;
  reject(error: Error): void;
}

/** Opened by `sandbox.exec.shell`. */
export class Shell {
  #session: ExecSession | undefined;
  #running: Running | undefined;
  #live = false;
  #closed: string | undefined;

  private constructor() {}

  /** @internal Resolves when the replay is over: what an earlier client saw is not shown again. */
  static async attach(
    attach: (callbacks: ExecCallbacks) => Promise<ExecSession>,
  ): Promise<Shell> {
    const shell = new Shell();
    let ready: () => void = () => undefined;
    const replayed = new Promise<void>((resolve) => (ready = resolve));
    const session = await attach({
      onStdout: (data) => shell.#take("stdout", data),
      onStderr: (data) => shell.#take("stderr", data),
      onScrollbackEnd: () => {
        shell.#live = true;
        ready();
      },
      onExit: (code) => {
        shell.#end(code === -1 ? "its connection ended" : `bash exited with code ${code}`);
        ready();
      },
    });
    shell.#session = session;
    await replayed;
    return shell;
  }

  get sessionId(): string {
    return this.#session?.sessionId ?? "";
  }

  /**
   * Runs one command line and waits for its end. What it changes (folder, variables, functions) is
   * there for the next one.
   */
  async run(cmd: string, opts: ShellRunOpts = {}): Promise<ProcessResult> {
    if (this.#closed !== undefined) throw new ShellClosedError(this.#closed);
    if (this.#running !== undefined) throw new ShellBusyError();
    const token = randomUUID().replaceAll("-", "");
    const inner = cmd.trim() === "" ? ":" : cmd;
    // The line feed before the brace ends a comment or a here-document of the command.
    const line =
      `{ ${inner}\n} ; __oc_code=$? ; printf '\\n__OC_%s_DONE__\\n' ${token} ; ` +
      `printf '\\n__OC_%s_EXIT_%d__\\n' ${token} "$__oc_code" >&2\n`;
    const result = new Promise<ProcessResult>((resolve, reject) => {
      this.#running = {
        stdout: new Until(`\n__OC_${token}_DONE__\n`, /^\n__OC_\w+_DONE__\n/, opts.onStdout),
        stderr: new Until(`\n__OC_${token}_EXIT_`, /^\n__OC_\w+_EXIT_(\d+)__\n/, opts.onStderr),
        resolve,
        reject,
      };
    });
    try {
      this.#session?.sendStdin(line);
    } catch {
      this.#end("its connection ended");
    }
    return result;
  }

  /** Ends bash; a command that is still running gets 5 s, then it is killed. */
  async close(): Promise<void> {
    const session = this.#session;
    if (session === undefined) return;
    if (this.#closed === undefined) {
      this.#closed = "it was closed";
      try {
        session.sendStdin("exit\n");
        let timer: ReturnType<typeof setTimeout> | undefined;
        const late = new Promise<"late">((resolve) => {
          timer = setTimeout(() => resolve("late"), CLOSE_MS_MAX);
        });
        const ended = await Promise.race([session.done, late]);
        clearTimeout(timer);
        if (ended === "late") await session.kill();
      } catch {
        // The connection had ended before.
      }
    }
    session.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #take(stream: "stdout" | "stderr", data: Uint8Array): void {
    const running = this.#running;
    if (!this.#live || running === undefined) return;
    running[stream].take(data);
    const [out, err] = [running.stdout.end, running.stderr.end];
    if (out === undefined || err === undefined) return;
    this.#running = undefined;
    const [stdout, stderr] = [running.stdout.text, running.stderr.text];
    running.resolve({ exitCode: Number(err), stdout, stderr });
  }

  #end(reason: string): void {
    this.#closed ??= reason;
    const running = this.#running;
    this.#running = undefined;
    running?.reject(new ShellClosedError(reason));
  }
}

/** Text of a stream up to its marker. */
class Until {
  text = "";
  /** What the marker says, once it has come. */
  end: string | undefined;
  readonly #decoder = new TextDecoder();
  readonly #encoder = new TextEncoder();
  #rest = "";

  constructor(
    readonly prefix: string,
    readonly whole: RegExp,
    readonly onData: ((data: Uint8Array) => void) | undefined,
  ) {}

  take(data: Uint8Array): void {
    if (this.end !== undefined) return;
    this.#rest += this.#decoder.decode(data, { stream: true });
    const at = this.#rest.indexOf(this.prefix);
    // The end of what is there may be the marker's beginning.
    const safe = at >= 0 ? at : this.#rest.length - this.#overlap();
    this.#give(this.#rest.slice(0, safe));
    this.#rest = this.#rest.slice(safe);
    const found = this.whole.exec(this.#rest);
    if (at >= 0 && found !== null) this.end = found[1] ?? "";
  }

  #give(text: string): void {
    if (text === "") return;
    this.text += text;
    this.onData?.(this.#encoder.encode(text));
  }

  #overlap(): number {
    const longest = Math.min(this.prefix.length - 1, this.#rest.length);
    for (let size = longest; size > 0; size -= 1) {
      if (this.prefix.startsWith(this.#rest.slice(-size))) return size;
    }
    return 0;
  }
}
