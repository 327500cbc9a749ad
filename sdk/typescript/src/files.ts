// Files of a sandbox, read and written with root's rights. Relative paths start at `/home/sandbox`.

import { NotFoundError, BadRequestError } from "./errors.js";
import { path as at, type Call, type Client } from "./http.js";

export interface EntryInfo {
  name: string;
  isDir: boolean;
  /** Absolute. */
  path: string;
  /** In bytes. */
  size: number;
}

/** A transfer ends when nothing moves for this long. */
const SILENCE_MS_MAX = 60_000;
/** For a body of unknown or large size; the server takes at most 2 GiB. */
const WRITE_MS_MAX = 600_000;
const SMALL_BYTES = 1024 * 1024;

/** Reads and writes files of one sandbox. */
export class Filesystem {
  readonly #client: Client;
  readonly #sandboxId: string;

  /** @internal Sandboxes have one as `files`. */
  constructor(client: Client, sandboxId: string) {
    this.#client = client;
    this.#sandboxId = sandboxId;
  }

  /** A file as text; bytes that are no UTF-8 become U+FFFD. */
  async read(path: string): Promise<string> {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(await this.readBytes(path));
  }

  async readBytes(path: string): Promise<Uint8Array> {
    const stream = await this.readStream(path);
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** A file of any size, in pieces. Cancel the stream to stop early. */
  async readStream(path: string): Promise<ReadableStream<Uint8Array<ArrayBuffer>>> {
    const call = this.#call(`read ${path}`, "GET", "", path);
    const { body } = await this.#client.open(call, SILENCE_MS_MAX);
    return body;
  }

  /** Writes a whole file; folders on the way are made. A stream is sent as it comes. */
  async write(
    path: string,
    content: string | Uint8Array | Blob | ReadableStream<Uint8Array>,
  ): Promise<void> {
    const text = typeof content === "string";
    const body = text ? new TextEncoder().encode(content) : (content as Uint8Array<ArrayBuffer>);
    const small = body.byteLength <= SMALL_BYTES;
    const call = this.#call(`write ${path}`, "PUT", "", path);
    await this.#client.done({ ...call, body, timeoutMs: small ? undefined : WRITE_MS_MAX });
  }

  /** A folder's entries by name, hidden ones too. */
  list(path = "/"): Promise<EntryInfo[]> {
    return this.#client.json(this.#call(`list ${path}`, "GET", "/list", path));
  }

  /** Makes a folder with those on the way; one that is there is fine. */
  makeDir(path: string): Promise<void> {
    return this.#client.done(this.#call(`mkdir ${path}`, "POST", "/mkdir", path));
  }

  /** Deletes a file, or a folder with everything in it. What is not there counts as deleted. */
  remove(path: string): Promise<void> {
    return this.#client.done(this.#call(`remove ${path}`, "DELETE", "", path));
  }

  /** Whether there is a file or folder. False also when that cannot be found out. */
  async exists(path: string): Promise<boolean> {
    try {
      // The body is not needed, and may be large.
      const { stop } = await this.#client.open(this.#call("", "GET", "", path), SILENCE_MS_MAX);
      stop();
      return true;
    } catch (error) {
      if (!(error instanceof NotFoundError || error instanceof BadRequestError)) return false;
      return this.list(path).then(
        () => true,
        () => false,
      );
    }
  }

  #call(action: string, method: Call["method"], below: string, path: string): Call {
    const base = at`/sandboxes/${this.#sandboxId}/files`;
    return { action, method, path: base + below, query: { path }, repeat: "safe", short: true };
  }
}
