// Server-sent events, and the build logs that come by them.

import { BuildError } from "./errors.js";
import { isObject, type Call, type Client, type Opened } from "./http.js";

export interface ServerEvent {
  event: string;
  data: string;
}

/** The server sends at least a comment every 15 s. */
export const SILENCE_MS_MAX = 60_000;
/** An image may take long to be fetched before its build says a word; the server answers at once. */
const BUILD_REPLY_MS_MAX = 300_000;

/** Events of a stream, comments left out. Lines may end in LF or CRLF. */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let event = "message";
  let data: string[] = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines.map((one) => one.replace(/\r$/, ""))) {
        if (line === "") {
          if (data.length > 0) yield { event, data: data.join("\n") };
          [event, data] = ["message", []];
        } else if (line.startsWith("event:")) {
          event = line.slice(6).trimStart();
        } else if (line.startsWith("data:")) {
          data.push(line.slice(5).replace(/^ /, ""));
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** A creating call that may take long: its log goes to `onLog`, its result comes back. */
export async function build<T>(
  client: Client,
  call: Call,
  onLog?: ((log: string) => void) | undefined,
): Promise<T> {
  const headers = { ...call.headers, Accept: "text/event-stream" };
  const timeoutMs = Math.max(BUILD_REPLY_MS_MAX, client.requestTimeoutMs);
  const opened = await client.open({ timeoutMs, ...call, headers }, SILENCE_MS_MAX);
  const type = opened.reply.headers.get("content-type") ?? "";
  if (!type.includes("text/event-stream")) return JSON.parse(await text(opened)) as T;
  for await (const { event, data } of events(opened.body)) {
    const said = parsed(data);
    if (event === "build_log") {
      const message = isObject(said) ? said["message"] : undefined;
      onLog?.(typeof message === "string" ? message : data);
    } else if (event === "error") {
      const reason = isObject(said) ? said["error"] : undefined;
      throw new BuildError(`Build failed: ${typeof reason === "string" ? reason : data}`);
    } else if (event === "result") {
      return said as T;
    }
  }
  throw new BuildError("No result received from build stream");
}

async function text({ body }: Opened): Promise<string> {
  return new Response(body).text();
}

/** `undefined` for what is not JSON. */
export function parsed(data: string): unknown {
  try {
    return JSON.parse(data);
  } catch {
    return undefined;
  }
}
