"""OpenComputer: sandboxes for AI agents in which the key is never in the box."""

from ._config import ClientOptions
from ._version import __version__
from .agent import Agent, AgentEvent, AgentSession, AgentSessionInfo
from .errors import (
    ApiConnectionError,
    ApiError,
    ApiTimeoutError,
    AuthenticationError,
    BadRequestError,
    BuildError,
    ConflictError,
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
    UnavailableError,
    WebhookVerificationError,
)
from .exec import Exec, ExecOutput, ExecSession, ExecSessionInfo, ProcessResult
from .files import EntryInfo, Filesystem
from .image import Image
from .mounts import MountInfo, Mounts
from .project import Project
from .pty import Pty, PtySession
from .sandbox import Sandbox
from .secret_store import SecretStore
from .shell import Shell
from .snapshot import Snapshots
from .template import Template, TemplateInfo
from .usage import (
    SandboxUsagePoint,
    SandboxUsageResponse,
    SandboxUsageTotals,
    TagKeyInfo,
    Tags,
    Usage,
    UsageBySandboxResponse,
    UsageByTagResponse,
    UsageSandboxItem,
    UsageTagItem,
    UsageTotals,
    UsageUntaggedBucket,
)
from .webhooks import Webhooks, verify_webhook

__all__ = [
    "Agent",
    "AgentEvent",
    "AgentSession",
    "AgentSessionInfo",
    "ApiConnectionError",
    "ApiError",
    "ApiTimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "BuildError",
    "ClientOptions",
    "ConflictError",
    "EntryInfo",
    "Exec",
    "ExecOutput",
    "ExecSession",
    "ExecSessionInfo",
    "Filesystem",
    "GoneError",
    "Image",
    "MountInfo",
    "Mounts",
    "NotFoundError",
    "OpenComputerError",
    "PermissionDeniedError",
    "PlanLimitError",
    "ProcessResult",
    "Project",
    "Pty",
    "PtySession",
    "RateLimitError",
    "Sandbox",
    "SandboxFamilyLimitError",
    "SandboxUsagePoint",
    "SandboxUsageResponse",
    "SandboxUsageTotals",
    "ScalingLockedError",
    "SecretStore",
    "ServerError",
    "Shell",
    "ShellBusyError",
    "ShellClosedError",
    "Snapshots",
    "TagKeyInfo",
    "Tags",
    "Template",
    "TemplateInfo",
    "UnavailableError",
    "Usage",
    "UsageBySandboxResponse",
    "UsageByTagResponse",
    "UsageSandboxItem",
    "UsageTagItem",
    "UsageTotals",
    "UsageUntaggedBucket",
    "WebhookVerificationError",
    "Webhooks",
    "__version__",
    "verify_webhook",
]
