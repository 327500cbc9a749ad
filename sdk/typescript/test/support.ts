// What several test files need.

import { appendFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { TestContext } from "node:test";

export function need(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set: start the tests with sdk/run`);
  return value;
}

export const apiUrl = (): string => need("OPENCOMPUTER_API_URL");
export const apiKey = (): string => need("OPENCOMPUTER_API_KEY");

/** Skips, and has `sdk/run` print why. */
export function skip(t: TestContext, reason: string): void {
  note(t, reason);
  t.skip(reason);
}

/** Has `sdk/run` print that a part of a test was skipped. */
export function note(t: TestContext, reason: string): void {
  const line = `typescript: ${t.name}: ${reason}`;
  if (process.env["OC_SKIPS"] !== undefined) appendFileSync(process.env["OC_SKIPS"], `${line}\n`);
}

/** Polls until `probe` gives something; generous, since machines are busy. */
export async function eventually<T>(what: string, probe: () => T | Promise<T>): Promise<T> {
  const until = Date.now() + 30_000;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (Date.now() > until) throw new Error(`did not happen within 30 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** What a call throws. */
export async function thrown(work: Promise<unknown>): Promise<Error> {
  try {
    await work;
  } catch (error) {
    if (error instanceof Error) return error;
    throw error;
  }
  throw new Error("it did not fail");
}

export interface Seen {
  method: string;
  url: string;
  headers: IncomingMessage["headers"];
  body: string;
}

/** A server that answers as told and remembers what it was asked. */
export class Fake {
  readonly seen: Seen[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server) {
    this.#server = server;
    server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  static async start(
    t: TestContext,
    answer: (seen: Seen, reply: ServerResponse, count: number) => void,
  ): Promise<Fake> {
    const server = createServer();
    const fake = new Fake(server);
    server.on("request", (request: IncomingMessage, reply: ServerResponse) => {
      const parts: Buffer[] = [];
      request.on("data", (part: Buffer) => parts.push(part));
      request.on("error", () => undefined);
      request.on("end", () => {
        const { method = "", url = "", headers } = request;
        const seen = { method, url, headers, body: Buffer.concat(parts).toString() };
        fake.seen.push(seen);
        answer(seen, reply, fake.seen.length);
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    t.after(() => fake.stop());
    return fake;
  }

  get server(): Server {
    return this.#server;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Ends every connection, as a server does that dies. */
  stop(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }
}

export function json(reply: ServerResponse, status: number, body: unknown, headers = {}): void {
  reply.writeHead(status, { "content-type": "application/json", ...headers });
  reply.end(JSON.stringify(body));
}
