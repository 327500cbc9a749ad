"""Shapes of the dicts that come back, with the names of the API."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from typing_extensions import NotRequired


class ProjectInfo(TypedDict):
    id: str
    orgId: str
    name: str
    template: str
    cpuCount: int
    memoryMB: int
    timeoutSec: int
    egressAllowlist: list[str]
    createdAt: str
    updatedAt: str


class SecretStoreInfo(TypedDict):
    id: str
    orgId: str
    name: str
    egressAllowlist: list[str]
    createdAt: str
    updatedAt: str


class SecretEntryInfo(TypedDict):
    id: str
    storeId: str
    name: str
    allowedHosts: list[str]
    createdAt: str
    updatedAt: str


class SandboxInfo(TypedDict):
    sandboxID: str
    #: ``running``, ``hibernated``, ``stopped`` or ``error``.
    status: str
    templateID: str
    cpuCount: int
    memoryMB: int
    startedAt: str
    metadata: dict[str, str]
    diskMB: NotRequired[int]
    timeout: NotRequired[int]
    alias: NotRequired[str]
    tags: NotRequired[dict[str, str]]
    endAt: NotRequired[str | None]
    sandboxDomain: NotRequired[str]
    fromCheckpointId: NotRequired[str]
    patchError: NotRequired[str]


class CheckpointInfo(TypedDict):
    id: str
    sandboxId: str
    orgId: str
    name: str
    #: ``processing``, ``ready`` or ``failed``.
    status: str
    sandboxConfig: dict[str, Any]
    sizeBytes: int
    createdAt: str
    kind: NotRequired[Literal["full", "disk_only"]]
    isPublic: NotRequired[bool]
    errorMsg: NotRequired[str]


class RetentionPolicy(TypedDict):
    mode: Literal["none", "delete_oldest"]
    maxCount: NotRequired[int]


class PatchInfo(TypedDict):
    id: str
    checkpointId: str
    sequence: int
    script: str
    description: str
    strategy: str
    createdAt: str


class PatchResult(TypedDict):
    patch: PatchInfo


class PreviewURLResult(TypedDict):
    id: str
    sandboxId: str
    orgId: str
    hostname: str
    port: int
    sslStatus: str
    authConfig: dict[str, Any]
    createdAt: str
    customHostname: NotRequired[str]
    cfHostnameId: NotRequired[str]


class ScaleResult(TypedDict):
    sandboxID: str
    memoryMB: int
    cpuPercent: int


class AutoscaleStatus(TypedDict):
    sandboxID: str
    enabled: bool
    minMemoryMB: int
    maxMemoryMB: int


class ScalingLockStatus(TypedDict):
    sandboxID: str
    locked: bool


class AllowedHostsInfo(TypedDict):
    sandboxID: str
    egressAllowlist: list[str]
    perSecretAllowedHosts: dict[str, list[str]]
    secretStore: NotRequired[str]
    baseSecretStore: NotRequired[str]
    project: NotRequired[str]


class PreviewAuth(TypedDict):
    scheme: NotRequired[Literal["bearer"]]
    #: ``auto``, the default, has the server make it.
    token: NotRequired[str]


class InlineWebhook(TypedDict):
    url: str
    secret: NotRequired[str]
    eventTypes: NotRequired[list[str]]


class LogEntry(TypedDict):
    _time: str
    #: ``var_log``, ``exec_stdout``, ``exec_stderr``, ``agent``; there may be more.
    source: str
    line: str
    sandbox_id: str
    path: NotRequired[str]
    exec_id: NotRequired[str]
    command: NotRequired[str]
    argv: NotRequired[list[str]]
    exit_code: NotRequired[int]


class SnapshotInfo(TypedDict):
    id: str
    orgId: str
    name: str
    #: ``building``, ``ready`` or ``failed``.
    status: str
    contentHash: str
    manifest: dict[str, Any]
    createdAt: str
    lastUsedAt: str
    checkpointId: NotRequired[str]
    errorMsg: NotRequired[str]


class McpServerConfig(TypedDict):
    command: str
    args: NotRequired[list[str]]
    env: NotRequired[dict[str, str]]


class WebhookDestination(TypedDict):
    id: str
    name: str | None
    url: str
    eventTypes: list[str]
    sandboxId: str | None
    enabled: bool
    hasSecret: bool
    createdAt: str
    updatedAt: str
    #: After a create or a rotation.
    secret: NotRequired[str]


class WebhookDelivery(TypedDict):
    id: str
    status: Literal["success", "pending", "failed"]
    attemptId: NotRequired[str]
    responseStatusCode: NotRequired[int]
    timestamp: NotRequired[str]
