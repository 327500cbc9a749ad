// What sandboxes used, and the tags they are grouped by.

import { Client, path } from "./http.js";

export interface UsageTotals {
  memoryGbSeconds: number;
  diskOverageGbSeconds: number;
}

export interface UsageSandboxItem extends UsageTotals {
  sandboxId: string;
  alias?: string;
  status?: string;
  tags: Record<string, string>;
  tagsLastUpdatedAt: string | null;
}

export interface UsageTagItem extends UsageTotals {
  tagKey: string;
  tagValue: string;
  sandboxCount: number;
}

export interface UsageUntaggedBucket extends UsageTotals {
  sandboxCount: number;
}

interface UsagePage<Item> {
  from: string;
  to: string;
  total: UsageTotals;
  items: Item[];
  /** For the next page; null on the last one. */
  nextCursor: string | null;
}

export interface UsageBySandboxResponse extends UsagePage<UsageSandboxItem> {
  groupBy: "sandbox";
}

export interface UsageByTagResponse extends UsagePage<UsageTagItem> {
  groupBy: string;
  untagged: UsageUntaggedBucket;
}

/** `tag:<key>` to values, separated by commas; an empty text means that the tag is absent. */
export type UsageFilterMap = Record<string, string>;

export interface UsageQueryOpts {
  /** Date or RFC 3339 time. */
  from?: string;
  /** Date or RFC 3339 time. */
  to?: string;
  filter?: UsageFilterMap;
  sort?: "-memoryGbSeconds" | "-diskOverageGbSeconds";
  /** Default 50, at most 500. */
  limit?: number;
  cursor?: string;
}

export interface SandboxUsagePoint {
  ts: string;
  memoryAllocatedGbSeconds: number;
  memoryUsedGbSeconds: number;
  uptimeSeconds: number;
  allocatedMemoryMb: number;
  usedMemoryMbAvg: number;
  usedMemoryMbPeak: number;
}

export interface SandboxUsageTotals {
  memoryAllocatedGbSeconds: number;
  memoryUsedGbSeconds: number;
  uptimeSeconds: number;
  memoryAllocatedPeakMb: number;
  memoryUsedPeakMb: number;
}

export interface SandboxUsageResponse {
  sandboxId: string;
  alias?: string;
  from: string;
  to: string;
  totals: SandboxUsageTotals;
  points: SandboxUsagePoint[];
}

/** What was used, by sandbox or by tag. */
export class Usage {
  readonly #client: Client;

  /** Both from the environment when they are left out. */
  constructor(apiUrl?: string, apiKey?: string) {
    this.#client = new Client({ apiUrl, apiKey });
  }

  bySandbox(opts: UsageQueryOpts = {}): Promise<UsageBySandboxResponse> {
    return this.#grouped("sandbox", opts);
  }

  byTag(tagKey: string, opts: UsageQueryOpts = {}): Promise<UsageByTagResponse> {
    return this.#grouped(`tag:${tagKey}`, opts);
  }

  forSandbox(
    sandboxId: string,
    opts: Pick<UsageQueryOpts, "from" | "to"> = {},
  ): Promise<SandboxUsageResponse> {
    const query = { from: opts.from, to: opts.to };
    const at = path`/sandboxes/${sandboxId}/usage`;
    return this.#client.json({ action: "get usage", method: "GET", path: at, query });
  }

  #grouped<T>(groupBy: string, { filter = {}, ...rest }: UsageQueryOpts): Promise<T> {
    const filters = Object.entries(filter).map(([key, value]) => [`filter[${key}]`, value]);
    const query = { groupBy, ...rest, ...Object.fromEntries(filters) };
    return this.#client.json({ action: "get usage", method: "GET", path: "/usage", query });
  }
}

export interface TagKeyInfo {
  key: string;
  sandboxCount: number;
  valueCount: number;
}

export interface TagSet {
  tags: Record<string, string>;
  /** ISO 8601; null when there never were any. */
  tagsLastUpdatedAt: string | null;
}

/** Tags of sandboxes. */
export class Tags {
  readonly #client: Client;

  /** Both from the environment when they are left out. */
  constructor(apiUrl?: string, apiKey?: string) {
    this.#client = new Client({ apiUrl, apiKey });
  }

  /** Every key in use. */
  async listKeys(): Promise<TagKeyInfo[]> {
    const call = { action: "list tags", method: "GET", path: "/tags", short: true } as const;
    return (await this.#client.json<{ keys: TagKeyInfo[] }>(call)).keys;
  }

  get(sandboxId: string): Promise<TagSet> {
    const at = path`/sandboxes/${sandboxId}/tags`;
    return this.#client.json({ action: "get tags", method: "GET", path: at, short: true });
  }

  /** Replaces all; `{}` clears them. */
  set(sandboxId: string, tags: Record<string, string>): Promise<TagSet> {
    const at = path`/sandboxes/${sandboxId}/tags`;
    return this.#client.json({ action: "set tags", method: "PUT", path: at, json: tags });
  }
}
