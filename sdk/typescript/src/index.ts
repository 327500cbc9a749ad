// Everything the package gives.

export { Agent, Agent as SandboxAgent, AgentSession } from "./agent.js";
export type {
  AgentAttachOpts,
  AgentConfig,
  AgentEvent,
  AgentSessionInfo,
  AgentStartOpts,
  McpServerConfig,
} from "./agent.js";
// Names that earlier packages used.
export type {
  AgentConfig as SandboxAgentConfig,
  AgentEvent as SandboxAgentEvent,
  AgentSession as SandboxAgentSession,
  AgentStartOpts as SandboxAgentStartOpts,
} from "./agent.js";
export type { ClientOpts } from "./config.js";
export {
  ApiError,
  AuthenticationError,
  BadRequestError,
  BuildError,
  ConflictError,
  ConnectionError,
  ExecTimeoutError,
  GoneError,
  NotFoundError,
  OpenComputerError,
  PermissionDeniedError,
  PlanLimitError,
  RateLimitError,
  SandboxFamilyLimitError,
  ScalingLockedError,
  ServerError,
  ShellBusyError,
  ShellClosedError,
  TimeoutError,
  UnavailableError,
  WebhookVerificationError,
} from "./errors.js";
export { Exec } from "./exec.js";
export type {
  ExecAttachOpts,
  ExecSessionInfo,
  ExecStartOpts,
  ExecStreamOpts,
  ProcessResult,
  RunOpts,
} from "./exec.js";
export { ExecSession } from "./exec-session.js";
export { ExecStream, type ExecOutput } from "./exec-stream.js";
export { Filesystem, type EntryInfo } from "./files.js";
export { Image, type ImageManifest, type ImageStep } from "./image.js";
export { Mounts } from "./mounts.js";
export type {
  AddMountOpts,
  CommandMountOpts,
  MountBackend,
  MountInfo,
  RcloneMountOpts,
} from "./mounts.js";
export { Project } from "./project.js";
export type {
  CreateProjectOpts,
  ProjectInfo,
  ProjectOpts,
  SetProjectSecretOpts,
  UpdateProjectOpts,
} from "./project.js";
export { Pty, PtySession, type PtyAttachOpts, type PtyOpts } from "./pty.js";
export { Sandbox } from "./sandbox.js";
export { SecretStore } from "./secret-store.js";
export type {
  CreateSecretStoreOpts,
  SecretEntryInfo,
  SecretStoreInfo,
  SecretStoreOpts,
  SetSecretOpts,
  UpdateSecretStoreOpts,
} from "./secret-store.js";
export { Shell, type ShellOpts, type ShellRunOpts } from "./shell.js";
export { Snapshots } from "./snapshot.js";
export type { CreateSnapshotOpts, SnapshotInfo, WaitForReadyOpts } from "./snapshot.js";
export { Templates, type TemplateInfo } from "./template.js";
export type * from "./types.js";
export { Tags, Usage } from "./usage.js";
export type {
  SandboxUsagePoint,
  SandboxUsageResponse,
  SandboxUsageTotals,
  TagKeyInfo,
  TagSet,
  UsageByTagResponse,
  UsageBySandboxResponse,
  UsageFilterMap,
  UsageQueryOpts,
  UsageSandboxItem,
  UsageTagItem,
  UsageTotals,
  UsageUntaggedBucket,
} from "./usage.js";
export { verifyWebhook, WebhookDeliveries, Webhooks } from "./webhooks.js";
export type {
  CreateWebhookParams,
  CreateWebhookResult,
  SandboxLifecycleEvent,
  SandboxStopReason,
  SandboxWebhookEventType,
  UpdateWebhookParams,
  VerifyWebhookOptions,
  WebhookDelivery,
  WebhookDeliveryRecord,
  WebhookDeliveryStatus,
  WebhookDestination,
  WebhookMessage,
  WebhooksOptions,
  WebhookTestResult,
} from "./webhooks.js";
