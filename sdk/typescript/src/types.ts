// Shapes of what goes to a sandbox's routes and comes back.

import type { ClientOpts } from "./config.js";
import type { Image } from "./image.js";

export interface SandboxOpts extends ClientOpts {
  /** Default `base`. */
  template?: string;
  /** Name (or id) of a project, whose defaults and secrets count. */
  project?: string;
  /** Name of a secret store; its secrets are sealed variables in the sandbox. */
  secretStore?: string;
  /** Seconds without a use after which it falls asleep. Default 300; 0: never. */
  timeout?: number;
  /** Plain variables of every process. */
  envs?: Record<string, string>;
  metadata?: Record<string, string>;
  /** A free label. */
  alias?: string;
  /** 1 to 4. */
  cpuCount?: number;
  memoryMB?: number;
  /** Default and minimum 20480. */
  diskMB?: number;
  /** Further hosts it may reach, besides those of its project and store. */
  egressAllowlist?: string[];
  /** False: no outbound network. */
  networkEnabled?: boolean;
  /** Built first, unless the server has it. */
  image?: Image;
  /** Name of a snapshot. */
  snapshot?: string;
  /** Each line of the build's log. */
  onBuildLog?: (log: string) => void;
  burst?: boolean;
  sandboxFamily?: "spot";
  /** Preview URLs ask for a token; `auto`, the default, has the server make it. */
  previewAuth?: { scheme?: "bearer"; token?: string };
  webhooks?: { url: string; secret?: string; eventTypes?: string[] }[];
}

/** What may be asked of a fork. */
export type ForkOpts = ClientOpts &
  Pick<
    SandboxOpts,
    | "timeout"
    | "envs"
    | "secretStore"
    | "project"
    | "metadata"
    | "memoryMB"
    | "cpuCount"
    | "alias"
  >;

export interface ListSandboxesOpts extends ClientOpts {
  /** Comma list, or `all`. */
  status?: string;
  /** At most 200. */
  limit?: number;
  offset?: number;
  tags?: Record<string, string>;
  metadata?: Record<string, string>;
}

export interface SandboxInfo {
  sandboxID: string;
  /** `running`, `hibernated`, `stopped` or `error`. */
  status: string;
  templateID: string;
  alias?: string;
  cpuCount: number;
  memoryMB: number;
  diskMB?: number;
  /** Seconds. */
  timeout?: number;
  /** ISO 8601. */
  startedAt: string;
  endAt?: string | null;
  metadata: Record<string, string>;
  tags?: Record<string, string>;
  sandboxDomain?: string;
  fromCheckpointId?: string;
  /** Why a checkpoint's patch failed. */
  patchError?: string;
}

export interface InlineWebhook {
  id: string;
  url: string;
  secret?: string;
}

export interface SandboxKillOptions {
  /** Its secret store goes too. */
  deleteSecretStore?: boolean;
}

export interface CheckpointInfo {
  id: string;
  sandboxId: string;
  orgId: string;
  name: string;
  kind?: "full" | "disk_only";
  /** Settings at the time; no values of secrets or variables. */
  sandboxConfig: Record<string, unknown>;
  /** `processing`, `ready` or `failed`. */
  status: string;
  sizeBytes: number;
  isPublic?: boolean;
  /** ISO 8601. */
  createdAt: string;
  /** Of a failed one. */
  errorMsg?: string;
}

export type CheckpointRetentionPolicy =
  | { mode: "none" }
  | { mode: "delete_oldest"; maxCount?: number };

export interface CreateCheckpointOptions {
  /** Default `full`. */
  kind?: "full" | "disk_only";
  promoteToFull?: boolean;
  retentionPolicy?: CheckpointRetentionPolicy;
}

export interface PatchInfo {
  id: string;
  checkpointId: string;
  sequence: number;
  script: string;
  description: string;
  /** `on_wake` */
  strategy: string;
  /** ISO 8601. */
  createdAt: string;
}

export interface PatchResult {
  patch: PatchInfo;
}

export interface PreviewURLResult {
  id: string;
  sandboxId: string;
  orgId: string;
  hostname: string;
  customHostname?: string;
  port: number;
  cfHostnameId?: string;
  sslStatus: string;
  authConfig?: Record<string, unknown>;
  /** ISO 8601. */
  createdAt: string;
}

export interface ScaleResult {
  sandboxID: string;
  memoryMB: number;
  cpuPercent: number;
}

export interface AutoscaleConfig {
  enabled: boolean;
  /** Needed to enable it. */
  minMemoryMB?: number;
  /** Needed to enable it. */
  maxMemoryMB?: number;
}

export interface AutoscaleStatus {
  sandboxID: string;
  enabled: boolean;
  minMemoryMB: number;
  maxMemoryMB: number;
}

export interface ScalingLockStatus {
  sandboxID: string;
  locked: boolean;
}

export interface AllowedHostsInfo {
  sandboxID: string;
  secretStore?: string;
  baseSecretStore?: string;
  project?: string;
  /** Empty: no restriction. */
  egressAllowlist: string[];
  /** Secrets without a restriction are not in it. */
  perSecretAllowedHosts: Record<string, string[]>;
}

export interface LogOpts {
  /** Goes on with what comes. Default true. */
  tail?: boolean;
  /** RFC 3339. */
  since?: string;
  /** RFC 3339. */
  until?: string;
  /** Only lines with this text. */
  q?: string;
  source?: LogEntry["source"][];
  /** Lines of history. Default 1000, at most 10 000. */
  limit?: number;
  signal?: AbortSignal;
}

export interface LogEntry {
  /** RFC 3339. */
  _time: string;
  /** `var_log`, `exec_stdout`, `exec_stderr`, `agent`; there may be more. */
  source: string;
  line: string;
  sandbox_id: string;
  path?: string;
  exec_id?: string;
  command?: string;
  argv?: string[];
  exit_code?: number;
}
