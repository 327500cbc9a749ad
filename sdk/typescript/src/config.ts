// Where the server is and who calls: options, then the environment, then the public origin.

const DEFAULT_ORIGIN = "https://app.opencomputer.dev";
/** Longest a call may take unless it says otherwise. */
export const REQUEST_MS_DEFAULT = 30_000;
const RETRIES_DEFAULT = 3;

/** Taken by every class and every static method. */
export interface ClientOpts {
  /** Default: `OPENCOMPUTER_API_KEY`. */
  apiKey?: string | undefined;
  /** Default: `OPENCOMPUTER_API_URL`, then the public service. `/api` is added when missing. */
  apiUrl?: string | undefined;
  /** Longest an ordinary call may take, in milliseconds, with its retries. Default 30 000. */
  requestTimeoutMs?: number | undefined;
  /**
   * How often a call is sent again after a broken connection or a 502, 503 or 504. Only calls that do
   * nothing twice are: reads, deletes, replacements, and creations by their `Idempotency-Key`.
   * Default 3.
   */
  maxRetries?: number | undefined;
}

/** Options with nothing left to find out. */
export interface Config {
  readonly apiKey: string;
  /** Ends in `/api`. */
  readonly apiUrl: string;
  readonly requestTimeoutMs: number;
  readonly maxRetries: number;
}

export function resolve(opts: ClientOpts = {}): Config {
  return {
    apiKey: opts.apiKey ?? environment("OPENCOMPUTER_API_KEY") ?? "",
    apiUrl: withApi(opts.apiUrl || environment("OPENCOMPUTER_API_URL") || DEFAULT_ORIGIN),
    requestTimeoutMs: opts.requestTimeoutMs ?? REQUEST_MS_DEFAULT,
    maxRetries: opts.maxRetries ?? RETRIES_DEFAULT,
  };
}

function withApi(url: string): string {
  const trimmed = url.replace(/\/+$/, "");
  return trimmed.endsWith("/api") ? trimmed : `${trimmed}/api`;
}

/** Browsers have no environment. */
function environment(name: string): string | undefined {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return process?.env?.[name];
}
