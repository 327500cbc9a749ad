// Named images, built once.

import { type ClientOpts } from "./config.js";
import { BuildError, ConnectionError, NotFoundError, TimeoutError } from "./errors.js";
import { Client, path } from "./http.js";
import type { Image, ImageManifest } from "./image.js";
import { build } from "./sse.js";

export interface SnapshotInfo {
  id: string;
  orgId: string;
  name: string;
  /** `building`, `ready` or `failed`. */
  status: string;
  contentHash: string;
  checkpointId: string;
  manifest: ImageManifest;
  /** ISO 8601. */
  createdAt: string;
  /** ISO 8601. */
  lastUsedAt: string;
  /** Of a failed one. */
  errorMsg?: string;
}

export interface CreateSnapshotOpts {
  /** Unique in the organization. */
  name: string;
  image: Image;
  onBuildLogs?: (log: string) => void;
}

export interface WaitForReadyOpts {
  signal?: AbortSignal;
  /** Default: ten minutes. */
  timeoutMs?: number;
  /** Default 1000, then twice as long each time, up to 5 s. */
  pollIntervalMs?: number;
}

const WAIT_MS_DEFAULT = 600_000;
const POLL_MS_DEFAULT = 1_000;
const POLL_MS_MAX = 5_000;

/** Snapshots of the organization. */
export class Snapshots {
  readonly #client: Client;

  constructor(opts: ClientOpts = {}) {
    this.#client = new Client(opts);
  }

  /** Builds an image and keeps it under a name. */
  create(opts: CreateSnapshotOpts): Promise<SnapshotInfo> {
    const json = { name: opts.name, image: opts.image.toJSON() };
    const action = "create snapshot";
    const call = { action, method: "POST", path: "/snapshots", json } as const;
    return build(this.#client, call, opts.onBuildLogs);
  }

  list(): Promise<SnapshotInfo[]> {
    const action = "list snapshots";
    return this.#client.json({ action, method: "GET", path: "/snapshots", short: true });
  }

  get(name: string): Promise<SnapshotInfo> {
    const at = path`/snapshots/${name}`;
    return this.#client.json({ action: "get snapshot", method: "GET", path: at, short: true });
  }

  /** Sandboxes made from it are not affected. One that is not there counts as deleted. */
  delete(name: string): Promise<void> {
    const at = path`/snapshots/${name}`;
    return this.#client.gone({ action: "delete snapshot", method: "DELETE", path: at, short: true });
  }

  /** Waits for a build that is under way; throws {@link BuildError} when it fails. */
  async waitUntilReady(name: string, opts: WaitForReadyOpts = {}): Promise<SnapshotInfo> {
    const { signal, timeoutMs = WAIT_MS_DEFAULT } = opts;
    const until = Date.now() + timeoutMs;
    let pauseMs = opts.pollIntervalMs ?? POLL_MS_DEFAULT;
    for (;;) {
      signal?.throwIfAborted();
      const snapshot = await this.#look(name);
      if (snapshot?.status === "ready") return snapshot;
      if (snapshot?.status === "failed") {
        throw new BuildError(`Build failed: ${snapshot.errorMsg ?? name}`);
      }
      if (Date.now() + pauseMs > until) {
        throw new TimeoutError(`snapshot ${name} was not ready within ${timeoutMs} ms`);
      }
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
      pauseMs = Math.min(pauseMs * 2, POLL_MS_MAX);
    }
  }

  /** Some servers show a snapshot only once it is built. */
  async #look(name: string): Promise<SnapshotInfo | undefined> {
    try {
      return await this.get(name);
    } catch (error) {
      if (error instanceof NotFoundError || error instanceof ConnectionError) return undefined;
      throw error;
    }
  }
}
