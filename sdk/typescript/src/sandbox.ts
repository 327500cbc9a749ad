// Sandboxes.

import "./dispose.js";
import { Agent } from "./agent.js";
import { type ClientOpts } from "./config.js";
import { OpenComputerError, TimeoutError } from "./errors.js";
import { Exec } from "./exec.js";
import { Filesystem } from "./files.js";
import { Client, path, type Call } from "./http.js";
import { Mounts } from "./mounts.js";
import { Pty } from "./pty.js";
import { build, events, parsed, SILENCE_MS_MAX } from "./sse.js";
import type {
  AllowedHostsInfo,
  AutoscaleConfig,
  AutoscaleStatus,
  CheckpointInfo,
  CreateCheckpointOptions,
  ForkOpts,
  InlineWebhook,
  ListSandboxesOpts,
  LogEntry,
  LogOpts,
  PatchInfo,
  PatchResult,
  PreviewURLResult,
  SandboxInfo,
  SandboxKillOptions,
  SandboxOpts,
  ScaleResult,
  ScalingLockStatus,
} from "./types.js";

interface SandboxReply extends SandboxInfo {
  previewAuthToken?: string;
  webhooks?: InlineWebhook[];
}

const CREATE_MS_MAX = 120_000;
const PATCH_MS_MAX = 300_000;
const CHECKPOINT_MS_MAX = 120_000;
const CHECKPOINT_POLL_MS = 200;
/** Of states that take the machine a while: hibernate, wake, restart, resize. */
const CHANGE_MS_MAX = 120_000;

/**
 * A sandbox. `await using` kills it at the end of its block:
 *
 * ```ts
 * await using sandbox = await Sandbox.create({ project: "my-agent" });
 * ```
 */
export class Sandbox {
  readonly sandboxId: string;
  readonly agent: Agent;
  readonly exec: Exec;
  readonly files: Filesystem;
  readonly mounts: Mounts;
  readonly pty: Pty;
  /** @deprecated The same as {@link exec}. */
  readonly commands: Exec;
  /** Shown once: after a create with `previewAuth`, or a rotation. Else empty. */
  previewAuthToken: string;
  /** Of `webhooks` at the create; a generated secret is shown here and nowhere else. */
  readonly webhooks: InlineWebhook[];
  readonly #client: Client;
  readonly #domain: string;
  #status: string;

  private constructor(client: Client, reply: SandboxReply) {
    this.#client = client;
    this.sandboxId = reply.sandboxID;
    this.#status = reply.status;
    this.#domain = reply.sandboxDomain ?? "";
    this.webhooks = reply.webhooks ?? [];
    this.previewAuthToken = reply.previewAuthToken ?? "";
    // Neither is shown by accident when the object is printed.
    Object.defineProperty(this, "previewAuthToken", { enumerable: false });
    Object.defineProperty(this, "webhooks", { enumerable: false });
    this.agent = new Agent(client, this.sandboxId);
    this.exec = this.commands = new Exec(client, this.sandboxId);
    this.files = new Filesystem(client, this.sandboxId);
    this.mounts = new Mounts(client, this.sandboxId);
    this.pty = new Pty(client, this.sandboxId);
  }

  /** Creates a sandbox. What is left out comes from the project, then from the server. */
  static async create(opts: SandboxOpts = {}): Promise<Sandbox> {
    const client = new Client(opts);
    const { template, image, onBuildLog, secrets, json } = creation(opts);
    const call: Call = {
      action: "create sandbox",
      method: "POST",
      path: "/sandboxes",
      json: { templateID: template, image: image?.toJSON(), ...json },
      repeat: "keyed",
      secrets,
    };
    const builds = image !== undefined || opts.snapshot !== undefined;
    const reply = builds
      ? await build<SandboxReply>(client, call, onBuildLog)
      : await client.json<SandboxReply>({ ...call, timeoutMs: longer(client, CREATE_MS_MAX) });
    return new Sandbox(client, reply);
  }

  /** An existing sandbox, whatever its state. It is not woken. */
  static async connect(sandboxId: string, opts: ClientOpts = {}): Promise<Sandbox> {
    const client = new Client(opts);
    return new Sandbox(client, await client.json<SandboxReply>({
      action: `connect to sandbox ${sandboxId}`,
      method: "GET",
      path: path`/sandboxes/${sandboxId}`,
      short: true,
    }));
  }

  /** Newest first. Default: running and hibernated ones, at most 100. */
  static list(opts: ListSandboxesOpts = {}): Promise<SandboxInfo[]> {
    const { status, limit, offset, tags = {}, metadata = {} } = opts;
    const filters = [
      ...Object.entries(tags).map(([key, value]) => [`tag.${key}`, value]),
      ...Object.entries(metadata).map(([key, value]) => [`metadata.${key}`, value]),
    ];
    const query = { status, limit, offset, ...Object.fromEntries(filters) };
    const call = { action: "list sandboxes", method: "GET", path: "/sandboxes", short: true } as const;
    return new Client(opts).json({ ...call, query });
  }

  /** A new sandbox that begins where the checkpoint was taken. */
  static async createFromCheckpoint(checkpointId: string, opts: ForkOpts = {}): Promise<Sandbox> {
    const client = new Client(opts);
    const { timeout, envs, secretStore, project, metadata, memoryMB, cpuCount, alias } = opts;
    return new Sandbox(client, await client.json<SandboxReply>({
      action: "create sandbox from checkpoint",
      method: "POST",
      path: path`/sandboxes/from-checkpoint/${checkpointId}`,
      json: { timeout, envs, secretStore, project, metadata, memoryMB, cpuCount, alias },
      repeat: "keyed",
      timeoutMs: longer(client, PATCH_MS_MAX),
      secrets: Object.values(envs ?? {}),
    }));
  }

  /** A script that runs as root in every fork of the checkpoint, before it is handed out. */
  static createCheckpointPatch(
    checkpointId: string,
    opts: { script: string; description?: string } & ClientOpts,
  ): Promise<PatchResult> {
    const { script, description } = opts;
    return new Client(opts).json({
      action: "create checkpoint patch",
      method: "POST",
      path: path`/sandboxes/checkpoints/${checkpointId}/patches`,
      json: { script, description },
    });
  }

  /** In the order in which they run. */
  static listCheckpointPatches(checkpointId: string, opts: ClientOpts = {}): Promise<PatchInfo[]> {
    const at = path`/sandboxes/checkpoints/${checkpointId}/patches`;
    const action = "list checkpoint patches";
    return new Client(opts).json({ action, method: "GET", path: at, short: true });
  }

  /** One that is not there counts as deleted. */
  static deleteCheckpointPatch(
    checkpointId: string,
    patchId: string,
    opts: ClientOpts = {},
  ): Promise<void> {
    const at = path`/sandboxes/checkpoints/${checkpointId}/patches/${patchId}`;
    const action = "delete checkpoint patch";
    return new Client(opts).gone({ action, method: "DELETE", path: at, short: true });
  }

  /** The same as {@link sandboxId}. */
  get id(): string {
    return this.sandboxId;
  }

  /** As of the last call that told it; {@link isRunning} asks. */
  get status(): string {
    return this.#status;
  }

  /** Host name of port 80; empty when the server has no domain for it. */
  get domain(): string {
    return this.getPreviewDomain(80);
  }

  /** Host name of a port inside the sandbox. */
  getPreviewDomain(port: number): string {
    return this.#domain === "" ? "" : `${this.sandboxId}-p${port}.${this.#domain}`;
  }

  /** The sandbox as the server has it now. */
  async getInfo(): Promise<SandboxInfo> {
    const info = await this.#json<SandboxInfo>("get sandbox", "GET", "", { short: true });
    this.#status = info.status;
    return info;
  }

  /** Ends it for good. Killing it again is fine. */
  async kill(opts: SandboxKillOptions = {}): Promise<void> {
    const query = { deleteSecretStore: opts.deleteSecretStore === true ? "true" : undefined };
    await this.#client.gone(this.#call("kill sandbox", "DELETE", "", { query, short: true }));
    this.#status = "stopped";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  /** False also when that cannot be found out. */
  async isRunning(): Promise<boolean> {
    try {
      return (await this.getInfo()).status === "running";
    } catch {
      return false;
    }
  }

  /** Puts it to sleep; the next use wakes it. */
  async hibernate(): Promise<void> {
    await this.#change("hibernate sandbox", "/hibernate", { repeat: "safe" });
    this.#status = "hibernated";
  }

  /** Without a timeout, the earlier one stays. */
  async wake(opts: { timeout?: number } = {}): Promise<void> {
    const json = { timeout: opts.timeout };
    await this.#change("wake sandbox", "/wake", { repeat: "safe", json });
    this.#status = "running";
  }

  /** Restarts what runs inside; disk, id and secrets stay. */
  async reboot(): Promise<void> {
    await this.#change("reboot sandbox", "/reboot");
  }

  /** Restarts it the hard way; the disk stays. */
  async powerCycle(): Promise<void> {
    await this.#change("power-cycle sandbox", "/power-cycle");
  }

  /** Seconds without a use after which it falls asleep; 0: never. */
  setTimeout(timeout: number): Promise<void> {
    const more = { json: { timeout }, short: true, repeat: "safe" } as const;
    return this.#client.done(this.#call("set timeout", "POST", "/timeout", more));
  }

  /** Changes its memory now, and turns autoscale off. */
  scale(opts: { memoryMB: number }): Promise<ScaleResult> {
    const more = { json: opts, timeoutMs: CHANGE_MS_MAX };
    return this.#json("scale sandbox", "POST", "/scale", more);
  }

  setAutoscale(opts: AutoscaleConfig): Promise<AutoscaleStatus> {
    return this.#json("set autoscale", "PUT", "/autoscale", { json: opts });
  }

  getAutoscale(): Promise<AutoscaleStatus> {
    return this.#json("get autoscale", "GET", "/autoscale");
  }

  /** Locked, it is not resized by anyone, and autoscale is off. */
  setScalingLock(locked: boolean): Promise<ScalingLockStatus> {
    return this.#json("set scaling lock", "PUT", "/scaling-lock", { json: { locked } });
  }

  getScalingLock(): Promise<ScalingLockStatus> {
    return this.#json("get scaling lock", "GET", "/scaling-lock");
  }

  /** Where it may go, and which secret may go where. */
  getAllowedHosts(): Promise<AllowedHostsInfo> {
    return this.#json("get allowed hosts", "GET", "/allowed-hosts");
  }

  /** What its programs print, with its history; goes on with what comes until the loop is left. */
  async *logs(opts: LogOpts = {}): AsyncGenerator<LogEntry, void> {
    const { signal, source, ...rest } = opts;
    const query = { ...rest, source: source?.join(",") };
    const call = { ...this.#call("read logs", "GET", "/logs", { query }), signal };
    const { body } = await this.#client.open(call, SILENCE_MS_MAX);
    for await (const { data } of events(body)) {
      const entry = parsed(data);
      if (entry !== undefined) yield entry as LogEntry;
    }
  }

  /** A URL that reads the file for whoever has it. `expiresIn`: seconds, default 3600, at most a day. */
  downloadUrl(filePath: string, opts: { expiresIn?: number } = {}): Promise<string> {
    return this.#signed("get download URL", "/files/download-url", filePath, opts);
  }

  /** A URL that writes the file with a PUT for whoever has it. */
  uploadUrl(filePath: string, opts: { expiresIn?: number } = {}): Promise<string> {
    return this.#signed("get upload URL", "/files/upload-url", filePath, opts);
  }

  /** It may still be `processing` when this returns; forks wait for it, patches need it ready. */
  createCheckpoint(name: string, opts: CreateCheckpointOptions = {}): Promise<CheckpointInfo> {
    const more = { json: { name, ...opts }, timeoutMs: CHANGE_MS_MAX };
    return this.#json("create checkpoint", "POST", "/checkpoints", more);
  }

  /** Newest first. */
  listCheckpoints(): Promise<CheckpointInfo[]> {
    return this.#json("list checkpoints", "GET", "/checkpoints", { short: true });
  }

  /** Waits until it is ready, by default two minutes; throws when it failed. */
  async waitForCheckpoint(
    checkpointId: string,
    opts: { timeoutMs?: number } = {},
  ): Promise<CheckpointInfo> {
    const { timeoutMs = CHECKPOINT_MS_MAX } = opts;
    const until = Date.now() + timeoutMs;
    for (;;) {
      const found = (await this.listCheckpoints()).find(({ id }) => id === checkpointId);
      if (found?.status === "ready") return found;
      if (found?.status !== "processing") {
        const why = found?.errorMsg ?? "it is not there";
        throw new OpenComputerError(`checkpoint ${checkpointId} is not to be had: ${why}`);
      }
      if (Date.now() > until) {
        throw new TimeoutError(`checkpoint ${checkpointId} was not ready within ${timeoutMs} ms`);
      }
      await new Promise((resolve) => setTimeout(resolve, CHECKPOINT_POLL_MS));
    }
  }

  /** Puts the sandbox back in place; its sessions end. */
  async restoreCheckpoint(checkpointId: string): Promise<void> {
    const below = path`/checkpoints/${checkpointId}/restore`;
    await this.#change("restore checkpoint", below);
    await this.getInfo();
  }

  /** Forks keep working. One that is not there counts as deleted. */
  deleteCheckpoint(checkpointId: string): Promise<void> {
    const below = path`/checkpoints/${checkpointId}`;
    const call = this.#call("delete checkpoint", "DELETE", below, { short: true });
    return this.#client.gone(call);
  }

  createPreviewURL(opts: {
    port: number;
    domain?: string;
    authConfig?: Record<string, unknown>;
  }): Promise<PreviewURLResult> {
    const json = { port: opts.port, domain: opts.domain, authConfig: opts.authConfig ?? {} };
    return this.#json("create preview URL", "POST", "/preview", { json, repeat: "safe" });
  }

  listPreviewURLs(): Promise<PreviewURLResult[]> {
    return this.#json("list preview URLs", "GET", "/preview", { short: true });
  }

  /** One that is not there counts as deleted. */
  deletePreviewURL(port: number): Promise<void> {
    const call = this.#call("delete preview URL", "DELETE", path`/preview/${port}`, { short: true });
    return this.#client.gone(call);
  }

  /** A new token for its preview URLs; the old one is void at once. */
  async rotatePreviewAuthToken(): Promise<string> {
    const action = "rotate preview auth token";
    const reply = await this.#json<{ previewAuthToken: string }>(action, "POST", "/preview/rotate");
    this.previewAuthToken = reply.previewAuthToken;
    return reply.previewAuthToken;
  }

  async #signed(
    action: string,
    below: string,
    filePath: string,
    opts: { expiresIn?: number },
  ): Promise<string> {
    const json = { path: filePath, expiresIn: opts.expiresIn };
    return (await this.#json<{ url: string }>(action, "POST", below, { json, repeat: "safe" })).url;
  }

  #change(action: string, below: string, more: Partial<Call> = {}): Promise<void> {
    const timeoutMs = longer(this.#client, CHANGE_MS_MAX);
    return this.#client.done(this.#call(action, "POST", below, { timeoutMs, ...more }));
  }

  #json<T>(
    action: string,
    method: Call["method"],
    below: string,
    more: Partial<Call> = {},
  ): Promise<T> {
    return this.#client.json<T>(this.#call(action, method, below, more));
  }

  #call(action: string, method: Call["method"], below: string, more: Partial<Call>): Call {
    return { action, method, path: path`/sandboxes/${this.sandboxId}` + below, ...more };
  }
}

/** A longer wait for what takes longer, unless the client's own is longer still. */
function longer(client: Client, ms: number): number {
  return Math.max(client.requestTimeoutMs, ms);
}

/** Sorts a create's options; what is undefined does not go out, so that a project's value counts. */
function creation(opts: SandboxOpts) {
  const { apiKey, apiUrl, requestTimeoutMs, maxRetries, ...rest } = opts;
  const { template, image, onBuildLog, ...json } = rest;
  const tokens = [json.previewAuth?.token, ...(json.webhooks ?? []).map(({ secret }) => secret)];
  const known = tokens.filter((token) => token !== undefined && token !== "auto") as string[];
  return { template, image, onBuildLog, json, secrets: [...Object.values(json.envs ?? {}), ...known] };
}
