// Commands in a sandbox: run to the end, or as sessions with their output as it comes.

import { ExecTimeoutError, TimeoutError } from "./errors.js";
import { path, type Client } from "./http.js";
import { ExecSession, type ExecCallbacks } from "./exec-session.js";
import { ExecStream } from "./exec-stream.js";
import { Shell, type ShellOpts } from "./shell.js";

export interface ProcessResult {
  /** -1: it was ended by its timeout, or by the sandbox's end. */
  exitCode: number;
  stdout: string;
  stderr: string;
}

export interface RunOpts {
  /** Seconds until the command is killed. Default 60. */
  timeout?: number;
  env?: Record<string, string>;
  /** Default `/home/sandbox`. */
  cwd?: string;
  /** Ends the wait, not the command. */
  signal?: AbortSignal;
  /** Longest to wait, in milliseconds; the command goes on. Default: its timeout and 30 s. */
  timeoutMs?: number;
}

export interface ExecStartOpts extends ExecCallbacks {
  /** With arguments there is no shell: the command is a program's name or path. */
  args?: string[];
  env?: Record<string, string>;
  /** Default `/home/sandbox`. */
  cwd?: string;
  /** Seconds until the command is killed. Default: never. */
  timeout?: number;
  /** Seconds it may go on when the last client has left. Default: for ever. */
  maxRunAfterDisconnect?: number;
}

export type ExecAttachOpts = ExecCallbacks;
export type ExecStreamOpts = Omit<ExecStartOpts, keyof ExecCallbacks>;

export interface ExecSessionInfo {
  sessionID: string;
  sandboxID: string;
  command: string;
  args: string[];
  running: boolean;
  /** Once it has ended. */
  exitCode?: number;
  /** ISO 8601. */
  startedAt: string;
  attachedClients: number;
}

interface RunReply extends ProcessResult {
  execId?: string;
  running?: boolean;
  error?: string;
}

const TIMEOUT_SEC_DEFAULT = 60;
/** Time for the replies on top of the command's own. */
const GRACE_MS = 30_000;
const POLL_MS_MIN = 50;
const POLL_MS_MAX = 1_000;

/** Runs commands in one sandbox. */
export class Exec {
  readonly #client: Client;
  readonly #sandboxId: string;

  /** @internal Sandboxes have one as `exec`. */
  constructor(client: Client, sandboxId: string) {
    this.#client = client;
    this.#sandboxId = sandboxId;
  }

  /** Runs a shell command and waits for its end; every exit code is a result. */
  async run(command: string, opts: RunOpts = {}): Promise<ProcessResult> {
    const timeout = opts.timeout ?? TIMEOUT_SEC_DEFAULT;
    const waitMs = opts.timeoutMs ?? (timeout > 0 ? timeout : TIMEOUT_SEC_DEFAULT) * 1000 + GRACE_MS;
    const until = Date.now() + waitMs;
    const limit = (): number => {
      return Math.max(1, Math.min(until - Date.now(), this.#client.requestTimeoutMs));
    };
    const { signal } = opts;
    const aborted = (): boolean => signal?.aborted ?? false;
    let reply = await this.#client.json<RunReply>({
      action: "run command",
      method: "POST",
      path: path`/sandboxes/${this.#sandboxId}/exec/run-async`,
      json: process("sh", { ...opts, timeout, args: ["-c", command] }),
      repeat: "keyed",
      timeoutMs: limit(),
      signal,
    });
    const { execId } = reply;
    // A handle is given for what has not ended, or printed more than fits; the poll has both.
    let polled = execId === undefined;
    for (let pauseMs = POLL_MS_MIN; execId !== undefined && !polled; ) {
      const late = Date.now() >= until;
      if (late || aborted()) {
        const why = late ? `no end within ${waitMs} ms` : "the wait was aborted";
        throw new ExecTimeoutError(`Failed to run command: ${why}; it goes on`, execId);
      }
      await sleep(Math.min(pauseMs, Math.max(0, until - Date.now())), signal);
      pauseMs = Math.min(pauseMs * 2, POLL_MS_MAX);
      if (Date.now() < until && !aborted()) {
        const seen = await this.#poll(execId, limit(), until, signal);
        if (seen !== undefined) [reply, polled] = [seen, seen.running !== true];
      }
    }
    const { exitCode = -1, stdout = "", stderr = "", error } = reply;
    return { exitCode, stdout, stderr: stderr === "" && error !== undefined ? error : stderr };
  }

  /** `undefined`: the wait's own limit came first. */
  async #poll(
    execId: string,
    timeoutMs: number,
    until: number,
    signal: AbortSignal | undefined,
  ): Promise<RunReply | undefined> {
    try {
      return await this.#client.json<RunReply>({
        action: "fetch exec result",
        method: "GET",
        path: path`/sandboxes/${this.#sandboxId}/exec/${execId}/result`,
        timeoutMs,
        signal,
      });
    } catch (error) {
      const ours = error instanceof TimeoutError && Date.now() >= until;
      if (ours || signal?.aborted === true) return undefined;
      throw error;
    }
  }

  /**
   * Starts a command and attaches to it. Without `args` it is a shell command line. What it prints
   * before the client is attached is kept up to 1 MiB; {@link stream} gives all of it.
   */
  async start(command: string, opts: ExecStartOpts = {}): Promise<ExecSession> {
    const info = await this.#create(command, opts);
    return this.#attachTo(info.sessionID, opts);
  }

  /** The same as {@link start}. */
  background(command: string, opts: ExecStartOpts = {}): Promise<ExecSession> {
    return this.start(command, opts);
  }

  /**
   * Starts a command and gives all its output as it comes, then its exit. 16 MiB may wait for the
   * reader; more is held back, which the server bears for 30 s without a read. Leaving the loop
   * early kills the command.
   *
   * ```ts
   * for await (const piece of sandbox.exec.stream("npm test")) {
   *   if (piece.type === "exit") console.log("exit code", piece.exitCode);
   *   else process.stdout.write(piece.data);
   * }
   * ```
   */
  stream(command: string, opts: ExecStreamOpts = {}): ExecStream {
    const args = gated(command, opts.args);
    return new ExecStream(async (callbacks) => {
      const session = await this.start("sh", { ...opts, ...callbacks, args });
      session.sendStdin("\n");
      return session;
    });
  }

  /** Attaches to a session, also to one that has ended: its output (the newest MiB) comes first. */
  attach(sessionId: string, opts: ExecAttachOpts = {}): Promise<ExecSession> {
    return this.#attachTo(sessionId, opts);
  }

  /** Running sessions, and those that ended in the last five minutes. */
  list(): Promise<ExecSessionInfo[]> {
    const at = path`/sandboxes/${this.#sandboxId}/exec`;
    const action = "list exec sessions";
    return this.#client.json({ action, method: "GET", path: at, short: true });
  }

  /** Signals the session's process group. Default: 9 (SIGKILL). */
  kill(sessionId: string, signal = 9): Promise<void> {
    return this.#client.done({
      action: "kill exec session",
      method: "POST",
      path: path`/sandboxes/${this.#sandboxId}/exec/${sessionId}/kill`,
      json: { signal },
    });
  }

  /** A shell that keeps its folder, variables and functions from one command to the next. */
  async shell(opts: ShellOpts = {}): Promise<Shell> {
    const args = ["--noprofile", "--norc", "+m"];
    const info = await this.#create("bash", { ...opts, args });
    return this.reattachShell(info.sessionID);
  }

  /** Goes on with the shell of an earlier {@link shell}, by its `sessionId`. */
  reattachShell(sessionId: string): Promise<Shell> {
    return Shell.attach((callbacks) => this.#attachTo(sessionId, callbacks));
  }

  #create(command: string, opts: ExecStartOpts): Promise<ExecSessionInfo> {
    return this.#client.json({
      action: "create exec session",
      method: "POST",
      path: path`/sandboxes/${this.#sandboxId}/exec`,
      json: {
        ...process(command, opts),
        maxRunAfterDisconnect: opts.maxRunAfterDisconnect,
      },
      repeat: "keyed",
    });
  }

  #attachTo(sessionId: string, callbacks: ExecCallbacks): Promise<ExecSession> {
    const at = path`/sandboxes/${this.#sandboxId}/exec/${sessionId}`;
    const kill = (signal?: number): Promise<void> => this.kill(sessionId, signal);
    return ExecSession.open(this.#client, at, sessionId, kill, callbacks);
  }
}

/**
 * Arguments of a `sh` that waits for a line of input, then becomes the command. Of what is printed
 * before the first client attaches, the server keeps the newest MiB: so nothing may be.
 */
function gated(command: string, args: string[] | undefined): string[] {
  const wait = "read -r OC_GO; unset OC_GO; exec";
  if (args === undefined) return ["-c", `${wait} sh -c "$1"`, "sh", command];
  return ["-c", `${wait} "$@"`, "sh", command, ...args];
}

function process(cmd: string, opts: ExecStartOpts): Record<string, unknown> {
  return { cmd, args: opts.args, envs: opts.env, cwd: opts.cwd, timeout: opts.timeout };
}

/** Ends early when aborted. */
function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
  });
}
