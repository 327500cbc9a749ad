// One call of the API: its deadline, its retries, its errors.

import { randomUUID } from "#platform";
import { resolve, type ClientOpts, type Config } from "./config.js";
import { ApiError, ConnectionError, OpenComputerError, TimeoutError, apiError } from "./errors.js";

/** Whether a call may be sent again when nobody knows if it arrived. */
export type Repeat =
  /** It does the same whether done once or twice. */
  | "safe"
  /** It creates something; with an `Idempotency-Key` the server makes it once. */
  | "keyed"
  | "never";

export interface Call {
  /** For messages: `Failed to <action>: …`. */
  action: string;
  method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  /** Below `/api`; `{}` is never filled in here: see {@link path}. */
  path: string;
  query?: Record<string, string | number | boolean | undefined>;
  json?: unknown;
  /** Raw bytes or a stream; a stream is sent once. */
  body?: Uint8Array<ArrayBuffer> | Blob | ReadableStream<Uint8Array>;
  headers?: Record<string, string>;
  /** Default: safe for everything but POST and PATCH. */
  repeat?: Repeat;
  /** Key of a `keyed` call, when the caller has one. */
  idempotencyKey?: string | undefined;
  /** In place of the client's default. */
  timeoutMs?: number | undefined;
  /** The message stays without the reply's text (lists, gets and deletes). */
  short?: boolean;
  /** What must not be in an error, besides the key. */
  secrets?: string[];
  signal?: AbortSignal | undefined;
}

const RETRY_STATUS = new Set([502, 503, 504]);
const BACKOFF_MS_MIN = 200;
const BACKOFF_MS_MAX = 2_000;
const RETRY_AFTER_SEC_MAX = 30;
const ERROR_CHARS_MAX = 8_192;
/** Shorter texts would take out more than the secret. */
const SECRET_CHARS_MIN = 4;

/** Path segments, each encoded: no id or name can reach another route. */
export function path(strings: TemplateStringsArray, ...values: (string | number)[]): string {
  return strings.reduce((all, text, i) => all + segment(values[i - 1]) + text);
}

function segment(value: string | number | undefined): string {
  const text = String(value);
  // Dots alone would be taken away with the segment before them.
  if (text === "" || text === "." || text === "..") {
    throw new OpenComputerError(`not an id or name: ${JSON.stringify(text)}`);
  }
  return encodeURIComponent(text);
}

/** Calls the API. Its key is in no property that is printed. */
export class Client {
  readonly #config: Config;

  constructor(opts: ClientOpts = {}) {
    this.#config = resolve(opts);
  }

  /** Ends in `/api`. */
  get apiUrl(): string {
    return this.#config.apiUrl;
  }

  get requestTimeoutMs(): number {
    return this.#config.requestTimeoutMs;
  }

  /** For sockets, which carry it in their own way. */
  get apiKey(): string {
    return this.#config.apiKey;
  }

  /** JSON of the reply. */
  async json<T>(call: Call): Promise<T> {
    return this.#whole(call, async (reply) => {
      try {
        return JSON.parse(await reply.text()) as T;
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error;
        throw new OpenComputerError(`Failed to ${call.action}: the reply is not JSON`);
      }
    });
  }

  /** A call whose reply says nothing more than that it was done. */
  async done(call: Call): Promise<void> {
    await this.#whole(call, async (reply) => void (await reply.arrayBuffer()));
  }

  /** As {@link done}; something that is not there counts as deleted. */
  async gone(call: Call): Promise<void> {
    try {
      await this.done(call);
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) throw error;
    }
  }

  async bytes(call: Call): Promise<Uint8Array<ArrayBuffer>> {
    return this.#whole(call, async (reply) => new Uint8Array(await reply.arrayBuffer()));
  }

  /**
   * The reply with its body unread. It ends with a {@link TimeoutError} when `idleMs` pass without a
   * byte; `stop` ends it at once.
   */
  async open(call: Call, idleMs: number): Promise<Opened> {
    const deadline = new Deadline(call, call.timeoutMs ?? this.#config.requestTimeoutMs);
    try {
      const reply = await this.#send(call, deadline);
      return { reply, body: watched(reply, deadline, idleMs), stop: () => deadline.stop() };
    } catch (error) {
      deadline.clear();
      throw error;
    }
  }

  async #whole<T>(call: Call, read: (reply: Response) => Promise<T>): Promise<T> {
    const deadline = new Deadline(call, call.timeoutMs ?? this.#config.requestTimeoutMs);
    try {
      const reply = await this.#send(call, deadline);
      return await read(reply).catch((error: unknown) => {
        throw deadline.explain(error);
      });
    } finally {
      deadline.clear();
    }
  }

  /** Sends until there is a reply that counts, or no try is left. */
  async #send(call: Call, deadline: Deadline): Promise<Response> {
    const repeat = call.repeat ?? (/^(POST|PATCH)$/.test(call.method) ? "never" : "safe");
    const replayable = !(call.body instanceof ReadableStream);
    const key = repeat === "keyed" ? (call.idempotencyKey ?? randomUUID()) : undefined;
    for (let tries = 0; ; tries += 1) {
      const left = replayable && tries < this.#config.maxRetries;
      let waitMs = Math.min(BACKOFF_MS_MIN * 2 ** tries, BACKOFF_MS_MAX) * (0.75 + Math.random() / 2);
      try {
        const reply = await fetch(this.#url(call), this.#init(call, key, deadline.signal));
        if (reply.ok) return reply;
        const error = await this.#failure(call, reply);
        // A delete that arrived before its connection broke.
        if (error.status === 404 && call.method === "DELETE" && tries > 0) {
          return new Response(null, { status: 204 });
        }
        const again = repeat !== "never" && RETRY_STATUS.has(error.status);
        // A first try may still be at work under its key.
        const underway = key !== undefined && error.status === 409 && tries > 0;
        // What the server has not begun is no repeat: it may go on until the deadline.
        const notBegun = error.retryable && replayable;
        if (!notBegun && !(left && (again || underway))) throw error;
        if (error.retryAfter !== undefined) {
          waitMs = Math.max(waitMs, Math.min(error.retryAfter, RETRY_AFTER_SEC_MAX) * 1000);
        }
        if (!deadline.allows(waitMs)) throw error;
      } catch (error) {
        if (error instanceof ApiError) throw error;
        const explained = deadline.explain(error);
        const broken = explained instanceof ConnectionError;
        if (!broken || repeat === "never" || !left || !deadline.allows(waitMs)) throw explained;
      }
      await deadline.pause(waitMs);
    }
  }

  #url(call: Call): string {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(call.query ?? {})) {
      if (value !== undefined) query.append(name, String(value));
    }
    const text = query.toString();
    return this.#config.apiUrl + call.path + (text === "" ? "" : `?${text}`);
  }

  #init(call: Call, key: string | undefined, signal: AbortSignal): RequestInit {
    const headers: Record<string, string> = { ...call.headers };
    if (this.#config.apiKey !== "") headers["X-API-Key"] = this.#config.apiKey;
    if (key !== undefined) headers["Idempotency-Key"] = key;
    const init: RequestInit & { duplex?: "half" } = { method: call.method, headers, signal };
    if (call.json !== undefined) {
      headers["Content-Type"] = "application/json";
      init.body = JSON.stringify(call.json);
    } else if (call.body !== undefined) {
      headers["Content-Type"] = "application/octet-stream";
      init.body = call.body;
      if (call.body instanceof ReadableStream) init.duplex = "half";
    }
    return init;
  }

  async #failure(call: Call, reply: Response): Promise<ApiError> {
    const text = this.#clean(await reply.text().catch(() => ""), call.secrets ?? []);
    let body: unknown;
    try {
      body = JSON.parse(text);
    } catch {
      body = undefined; // some proxy's page
    }
    const seconds = Number(reply.headers.get("retry-after") ?? "");
    return apiError({
      action: call.action,
      status: reply.status,
      text: text.slice(0, ERROR_CHARS_MAX),
      body: isObject(body) ? body : {},
      requestId: reply.headers.get("x-request-id") ?? undefined,
      retryAfter: seconds > 0 ? seconds : undefined,
      short: call.short ?? false,
    });
  }

  /** For replies to upgrades, which do not come through here. */
  refused(action: string, status: number, text: string, requestId: string | undefined): ApiError {
    const clean = this.#clean(text, []);
    let body: unknown;
    try {
      body = JSON.parse(clean);
    } catch {
      body = undefined;
    }
    const known = isObject(body) ? body : {};
    const rest = { retryAfter: undefined, short: false, requestId };
    return apiError({ action, status, text: clean, body: known, ...rest });
  }

  /** A server or proxy that echoes a request must not put its secrets into our errors. */
  #clean(text: string, secrets: string[]): string {
    return [this.#config.apiKey, ...secrets]
      .filter((secret) => secret.length >= SECRET_CHARS_MIN)
      .flatMap(spellings)
      .reduce((clean, secret) => clean.replaceAll(secret, "[secret]"), text);
  }
}

/** A secret as it is, inside JSON, and inside JSON inside JSON; the longest first. */
function spellings(secret: string): string[] {
  const once = JSON.stringify(secret).slice(1, -1);
  return [JSON.stringify(once).slice(1, -1), once, secret];
}

/** A reply whose body is still to come. */
export interface Opened {
  reply: Response;
  body: ReadableStream<Uint8Array<ArrayBuffer>>;
  stop(): void;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Ends a call when its time is up, or when its caller says so. */
class Deadline {
  readonly #controller = new AbortController();
  readonly #call: Call;
  readonly #stopped = () => this.#controller.abort();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #until = Infinity;
  #late: TimeoutError | undefined;

  constructor(call: Call, ms: number) {
    this.#call = call;
    this.restart(ms);
    if (call.signal?.aborted === true) this.#controller.abort();
    call.signal?.addEventListener("abort", this.#stopped, { once: true });
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** From now on this long. */
  restart(ms: number): void {
    clearTimeout(this.#timer);
    if (!(ms > 0 && Number.isFinite(ms))) return;
    this.#until = Date.now() + ms;
    this.#timer = setTimeout(() => {
      this.#late = new TimeoutError(`Failed to ${this.#call.action}: no answer within ${ms} ms`);
      this.#controller.abort();
    }, ms);
  }

  allows(ms: number): boolean {
    return Date.now() + ms < this.#until;
  }

  stop(): void {
    this.clear();
    this.#controller.abort();
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#call.signal?.removeEventListener("abort", this.#stopped);
  }

  async pause(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      this.signal.addEventListener("abort", done);
    });
    if (this.signal.aborted) throw this.explain(undefined);
  }

  /** What a failed `fetch` or a broken body means. */
  explain(error: unknown): unknown {
    if (this.#late !== undefined) return this.#late;
    if (this.#call.signal?.aborted === true) return this.#call.signal.reason;
    if (error instanceof OpenComputerError) return error;
    const cause = error instanceof Error ? error.cause : undefined;
    // Node says what happened in the cause, and there in `code` when several addresses were tried.
    const { code } = (cause ?? {}) as { code?: unknown };
    const said = cause instanceof Error && cause.message !== "" ? cause.message : code;
    const why = said ?? (error instanceof Error ? error.message : "the connection broke");
    return new ConnectionError(`Failed to ${this.#call.action}: ${String(why)}`);
  }
}

/** The body, ended when nothing comes for `idleMs`. */
function watched(
  reply: Response,
  deadline: Deadline,
  idleMs: number,
): ReadableStream<Uint8Array<ArrayBuffer>> {
  const reader = reply.body?.getReader();
  deadline.restart(Infinity);
  return new ReadableStream<Uint8Array<ArrayBuffer>>(
    {
      async pull(controller) {
        deadline.restart(idleMs);
        try {
          const next = await reader?.read();
          // Whoever reads slowly is not the server being silent.
          deadline.restart(Infinity);
          if (next === undefined || next.done) {
            deadline.clear();
            controller.close();
          } else {
            controller.enqueue(next.value as Uint8Array<ArrayBuffer>);
          }
        } catch (error) {
          deadline.clear();
          controller.error(deadline.explain(error));
        }
      },
      async cancel() {
        deadline.stop();
        await reader?.cancel().catch(() => undefined);
      },
    },
    { highWaterMark: 0 },
  );
}
