// Agent sessions: a program in the sandbox that speaks JSON lines, over an exec session.

import "./dispose.js";
import { path, isObject, type Client } from "./http.js";
import { ExecSession } from "./exec-session.js";
import { parsed } from "./sse.js";

export interface AgentEvent {
  /** `ready`, `configured`, `assistant`, `result`, `system`, `turn_complete`, … */
  type: string;
  [key: string]: unknown;
}

export interface McpServerConfig {
  command: string;
  args?: string[];
  env?: Record<string, string>;
}

export interface AgentConfig {
  model?: string;
  systemPrompt?: string;
  allowedTools?: string[];
  permissionMode?: string;
  /** Default 50. */
  maxTurns?: number;
  cwd?: string;
  mcpServers?: Record<string, McpServerConfig>;
  /** An earlier agent session to go on with. */
  resume?: string;
}

export interface AgentAttachOpts {
  onEvent?: (event: AgentEvent) => void;
  /** What the agent prints as errors. */
  onError?: (data: string) => void;
  onExit?: (exitCode: number) => void;
  onScrollbackEnd?: () => void;
}

export interface AgentStartOpts extends AgentConfig, AgentAttachOpts {
  prompt?: string;
}

export interface AgentSessionInfo {
  sessionID: string;
  sandboxID: string;
  running: boolean;
  /** ISO 8601. */
  startedAt: string;
}

/** Starts agents in one sandbox. */
export class Agent {
  readonly #client: Client;
  readonly #sandboxId: string;

  /** @internal Sandboxes have one as `agent`. */
  constructor(client: Client, sandboxId: string) {
    this.#client = client;
    this.#sandboxId = sandboxId;
  }

  async start(opts: AgentStartOpts = {}): Promise<AgentSession> {
    const { sessionID } = await this.#client.json<{ sessionID: string }>({
      action: "create agent session",
      method: "POST",
      path: path`/sandboxes/${this.#sandboxId}/agent`,
      json: { prompt: opts.prompt, ...configuration(opts) },
    });
    return this.attach(sessionID, opts);
  }

  attach(sessionId: string, opts: AgentAttachOpts = {}): Promise<AgentSession> {
    return AgentSession.open(this.#client, this.#sandboxId, sessionId, opts);
  }

  list(): Promise<AgentSessionInfo[]> {
    const at = path`/sandboxes/${this.#sandboxId}/agent`;
    const action = "list agent sessions";
    return this.#client.json({ action, method: "GET", path: at, short: true });
  }
}

/** An attached agent. */
export class AgentSession {
  readonly #session: ExecSession;

  private constructor(session: ExecSession) {
    this.#session = session;
  }

  /** @internal Sessions come from `sandbox.agent`. */
  static async open(
    client: Client,
    sandboxId: string,
    sessionId: string,
    opts: AgentAttachOpts,
  ): Promise<AgentSession> {
    const at = path`/sandboxes/${sandboxId}/exec/${sessionId}`;
    const kill = (signal?: number): Promise<void> =>
      client.done({
        action: "kill agent session",
        method: "POST",
        path: path`/sandboxes/${sandboxId}/agent/${sessionId}/kill`,
        json: { signal: signal ?? 9 },
      });
    const out = new Lines((line) => event(line, opts));
    const err = new TextDecoder();
    const session = await ExecSession.open(client, at, sessionId, kill, {
      onStdout: (data) => out.take(data),
      onStderr: (data) => opts.onError?.(err.decode(data, { stream: true })),
      onScrollbackEnd: opts.onScrollbackEnd,
      onExit: (code) => {
        out.end();
        opts.onExit?.(code);
      },
    });
    return new AgentSession(session);
  }

  get sessionId(): string {
    return this.#session.sessionId;
  }

  /** The exit code; -1 when the connection ended without one. */
  get done(): Promise<number> {
    return this.#session.done;
  }

  sendPrompt(text: string): void {
    this.#say({ type: "prompt", text });
  }

  interrupt(): void {
    this.#say({ type: "interrupt" });
  }

  configure(config: AgentConfig): void {
    this.#say({ type: "configure", ...configuration(config) });
  }

  kill(signal?: number): Promise<void> {
    return this.#session.kill(signal);
  }

  close(): void {
    this.#session.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #say(line: Record<string, unknown>): void {
    this.#session.sendStdin(`${JSON.stringify(line)}\n`);
  }
}

function configuration(config: AgentConfig): Record<string, unknown> {
  const { model, systemPrompt, allowedTools, permissionMode, maxTurns } = config;
  const { cwd, mcpServers, resume } = config;
  const first = { model, systemPrompt, allowedTools, permissionMode, maxTurns };
  return { ...first, cwd, mcpServers, resume };
}

function event(line: string, { onEvent, onError }: AgentAttachOpts): void {
  const said = parsed(line);
  if (isObject(said) && typeof said["type"] === "string") onEvent?.(said as AgentEvent);
  else onError?.(`non-JSON stdout: ${line}`);
}

class Lines {
  readonly #decoder = new TextDecoder();
  #rest = "";

  constructor(readonly onLine: (line: string) => void) {}

  take(data: Uint8Array): void {
    const lines = (this.#rest + this.#decoder.decode(data, { stream: true })).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) if (line.trim() !== "") this.onLine(line);
  }

  end(): void {
    if (this.#rest.trim() !== "") this.onLine(this.#rest);
    this.#rest = "";
  }
}
