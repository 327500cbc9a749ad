"""Sandboxes."""

from __future__ import annotations

import builtins
import time
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio

from ._http import Call, Client, given, path
from ._sse import SILENCE_SEC_MAX, build, events, parsed
from .agent import Agent
from .errors import ApiTimeoutError, OpenComputerError
from .exec import Exec
from .files import Filesystem
from .image import Image
from .mounts import Mounts
from .pty import Pty
from .types import (
    AllowedHostsInfo,
    AutoscaleStatus,
    CheckpointInfo,
    InlineWebhook,
    LogEntry,
    PatchInfo,
    PatchResult,
    PreviewAuth,
    PreviewURLResult,
    RetentionPolicy,
    SandboxInfo,
    ScaleResult,
    ScalingLockStatus,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._config import ClientOptions

_CREATE_SEC_MAX = 120.0
_PATCH_SEC_MAX = 300.0
_CHECKPOINT_POLL_SEC = 0.2
#: Of states that take the machine a while: hibernate, wake, restart, resize.
_CHANGE_SEC_MAX = 120.0


class Sandbox:
    """A sandbox. ``async with`` kills it at the end of its block::

    async with await Sandbox.create(project="my-agent") as sandbox:
        print((await sandbox.exec.run("echo hello")).stdout)
    """

    def __init__(self, client: Client, reply: dict[str, Any]) -> None:
        self._client = client
        self.sandbox_id: str = reply["sandboxID"]
        self.status: str = reply["status"]
        self.template: str = reply.get("templateID", "")
        #: Set only for a sandbox with a hard end time; RFC 3339.
        self.end_at: str | None = reply.get("endAt")
        #: Shown once: after a create with ``preview_auth``, or a rotation. Else empty.
        self.preview_auth_token: str = reply.get("previewAuthToken") or ""
        #: Of ``webhooks`` at the create; a generated secret is shown here and nowhere else.
        self.webhooks: builtins.list[dict[str, str]] = reply.get("webhooks") or []
        self._domain: str = reply.get("sandboxDomain") or ""
        self.agent = Agent(client, self.sandbox_id)
        self.exec = Exec(client, self.sandbox_id)
        self.files = Filesystem(client, self.sandbox_id)
        self.mounts = Mounts(client, self.sandbox_id)
        self.pty = Pty(client, self.sandbox_id)

    def __repr__(self) -> str:
        return f"Sandbox({self.sandbox_id!r}, status={self.status!r})"

    @classmethod
    async def create(
        cls,
        template: str | None = None,
        timeout: int | None = None,
        *,
        project: str | None = None,
        secret_store: str | None = None,
        envs: dict[str, str] | None = None,
        metadata: dict[str, str] | None = None,
        alias: str | None = None,
        cpu_count: int | None = None,
        memory_mb: int | None = None,
        disk_mb: int | None = None,
        egress_allowlist: builtins.list[str] | None = None,
        network_enabled: bool | None = None,
        image: Image | None = None,
        snapshot: str | None = None,
        on_build_log: Callable[[str], object] | None = None,
        burst: bool | None = None,
        sandbox_family: Literal["spot"] | None = None,
        preview_auth: PreviewAuth | None = None,
        webhooks: builtins.list[InlineWebhook] | None = None,
        **options: Unpack[ClientOptions],
    ) -> Self:
        """Creates a sandbox. What is left out comes from the project, then from the server:
        template ``base``, 300 s of idle ``timeout`` (0: never), 1 CPU."""
        body = given(
            templateID=template,
            timeout=timeout,
            project=project,
            secretStore=secret_store,
            envs=envs,
            metadata=metadata,
            alias=alias,
            cpuCount=cpu_count,
            memoryMB=memory_mb,
            diskMB=disk_mb,
            egressAllowlist=egress_allowlist,
            networkEnabled=network_enabled,
            image=image.to_dict() if image else None,
            snapshot=snapshot,
            burst=burst,
            sandboxFamily=sandbox_family,
            previewAuth=preview_auth,
            webhooks=webhooks,
        )
        tokens = [(preview_auth or {}).get("token"), *(one.get("secret") for one in webhooks or [])]
        known = [str(token) for token in tokens if token and token != "auto"]
        call = Call(
            "create sandbox",
            "POST",
            "/sandboxes",
            json=body,
            repeat="keyed",
            timeout=_CREATE_SEC_MAX,
            secrets=(*(envs or {}).values(), *known),
        )
        client = Client(**options)
        async with _ClosedOnError(client):
            builds = image is not None or snapshot is not None
            reply = await (build(client, call, on_build_log) if builds else client.json(call))
        return cls(client, reply)

    @classmethod
    async def connect(cls, sandbox_id: str, **options: Unpack[ClientOptions]) -> Self:
        """An existing sandbox, whatever its state. It is not woken."""
        client = Client(**options)
        call = Call(f"connect to sandbox {sandbox_id}", "GET", path("sandboxes", sandbox_id))
        async with _ClosedOnError(client):
            reply = await client.json(call)
        return cls(client, reply)

    @staticmethod
    async def list(
        *,
        status: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        tags: dict[str, str] | None = None,
        metadata: dict[str, str] | None = None,
        **options: Unpack[ClientOptions],
    ) -> builtins.list[SandboxInfo]:
        """Newest first. Default: running and hibernated ones, at most 100."""
        query = given(status=status, limit=limit, offset=offset)
        query |= {f"tag.{key}": value for key, value in (tags or {}).items()}
        query |= {f"metadata.{key}": value for key, value in (metadata or {}).items()}
        async with Client(**options) as client:
            reply = await client.json(Call("list sandboxes", "GET", "/sandboxes", query=query))
        return cast("builtins.list[SandboxInfo]", reply)

    @classmethod
    async def create_from_checkpoint(
        cls,
        checkpoint_id: str,
        timeout: int | None = None,
        *,
        envs: dict[str, str] | None = None,
        secret_store: str | None = None,
        project: str | None = None,
        metadata: dict[str, str] | None = None,
        memory_mb: int | None = None,
        cpu_count: int | None = None,
        alias: str | None = None,
        **options: Unpack[ClientOptions],
    ) -> Self:
        """A new sandbox that begins where the checkpoint was taken."""
        body = given(
            timeout=timeout,
            envs=envs,
            secretStore=secret_store,
            project=project,
            metadata=metadata,
            memoryMB=memory_mb,
            cpuCount=cpu_count,
            alias=alias,
        )
        call = Call(
            "create sandbox from checkpoint",
            "POST",
            path("sandboxes", "from-checkpoint", checkpoint_id),
            json=body,
            repeat="keyed",
            timeout=_PATCH_SEC_MAX,
            secrets=tuple((envs or {}).values()),
        )
        client = Client(**options)
        async with _ClosedOnError(client):
            reply = await client.json(call)
        return cls(client, reply)

    @staticmethod
    async def create_checkpoint_patch(
        checkpoint_id: str, script: str, description: str = "", **options: Unpack[ClientOptions]
    ) -> PatchResult:
        """A script that runs as root in every fork of the checkpoint, before it is handed out."""
        body = {"script": script, "description": description}
        at = path("sandboxes", "checkpoints", checkpoint_id, "patches")
        async with Client(**options) as client:
            reply = await client.json(Call("create checkpoint patch", "POST", at, json=body))
        return cast(PatchResult, reply)

    @staticmethod
    async def list_checkpoint_patches(
        checkpoint_id: str, **options: Unpack[ClientOptions]
    ) -> builtins.list[PatchInfo]:
        """In the order in which they run."""
        at = path("sandboxes", "checkpoints", checkpoint_id, "patches")
        async with Client(**options) as client:
            reply = await client.json(Call("list checkpoint patches", "GET", at))
        return cast("builtins.list[PatchInfo]", reply)

    @staticmethod
    async def delete_checkpoint_patch(
        checkpoint_id: str, patch_id: str, **options: Unpack[ClientOptions]
    ) -> None:
        """One that is not there counts as deleted."""
        at = path("sandboxes", "checkpoints", checkpoint_id, "patches", patch_id)
        async with Client(**options) as client:
            await client.gone(Call("delete checkpoint patch", "DELETE", at))

    @property
    def id(self) -> str:
        """The same as ``sandbox_id``."""
        return self.sandbox_id

    @property
    def commands(self) -> Exec:
        """The same as ``exec``, under its old name."""
        return self.exec

    @property
    def domain(self) -> str:
        """Host name of port 80; empty when the server has no domain for it."""
        return self.get_preview_domain(80)

    def get_preview_domain(self, port: int) -> str:
        """Host name of a port inside the sandbox."""
        return f"{self.sandbox_id}-p{port}.{self._domain}" if self._domain else ""

    async def get_info(self) -> SandboxInfo:
        """The sandbox as the server has it now."""
        info = cast(SandboxInfo, await self._json("get sandbox", "GET", ""))
        self.status = info["status"]
        return info

    async def kill(self, delete_secret_store: bool = False) -> None:
        """Ends it for good. Killing it again is fine."""
        query = given(deleteSecretStore=delete_secret_store or None)
        call = Call("kill sandbox", "DELETE", path("sandboxes", self.sandbox_id), query=query)
        await self._client.gone(call)
        self.status = "stopped"

    async def is_running(self) -> bool:
        """False also when that cannot be found out."""
        try:
            return (await self.get_info())["status"] == "running"
        except OpenComputerError:
            return False

    async def hibernate(self) -> None:
        """Puts it to sleep; the next use wakes it."""
        await self._change("hibernate sandbox", "/hibernate", safe=True)
        self.status = "hibernated"

    async def wake(self, timeout: int | None = None) -> None:
        """Without a timeout, the earlier one stays."""
        await self._change("wake sandbox", "/wake", given(timeout=timeout), safe=True)
        self.status = "running"

    async def reboot(self) -> None:
        """Restarts what runs inside; disk, id and secrets stay."""
        await self._change("reboot sandbox", "/reboot")

    async def power_cycle(self) -> None:
        """Restarts it the hard way; the disk stays."""
        await self._change("power-cycle sandbox", "/power-cycle")

    async def set_timeout(self, timeout: int) -> None:
        """Seconds without a use after which it falls asleep; 0: never."""
        await self._change("set timeout", "/timeout", {"timeout": timeout}, safe=True)

    async def scale(self, memory_mb: int) -> ScaleResult:
        """Changes its memory now, and turns autoscale off."""
        reply = await self._json("scale sandbox", "POST", "/scale", {"memoryMB": memory_mb})
        return cast(ScaleResult, reply)

    async def set_autoscale(
        self,
        enabled: bool,
        *,
        min_memory_mb: int | None = None,
        max_memory_mb: int | None = None,
    ) -> AutoscaleStatus:
        """Enabling it needs both bounds."""
        body = given(enabled=enabled, minMemoryMB=min_memory_mb, maxMemoryMB=max_memory_mb)
        return cast(AutoscaleStatus, await self._json("set autoscale", "PUT", "/autoscale", body))

    async def get_autoscale(self) -> AutoscaleStatus:
        return cast(AutoscaleStatus, await self._json("get autoscale", "GET", "/autoscale"))

    async def set_scaling_lock(self, locked: bool) -> ScalingLockStatus:
        """Locked, it is not resized by anyone, and autoscale is off."""
        reply = await self._json("set scaling lock", "PUT", "/scaling-lock", {"locked": locked})
        return cast(ScalingLockStatus, reply)

    async def get_scaling_lock(self) -> ScalingLockStatus:
        return cast(ScalingLockStatus, await self._json("get scaling lock", "GET", "/scaling-lock"))

    async def get_allowed_hosts(self) -> AllowedHostsInfo:
        """Where it may go, and which secret may go where."""
        return cast(
            AllowedHostsInfo, await self._json("get allowed hosts", "GET", "/allowed-hosts")
        )

    async def logs(
        self,
        *,
        tail: bool = True,
        since: str | None = None,
        until: str | None = None,
        q: str | None = None,
        source: tuple[str, ...] = (),
        limit: int | None = None,
    ) -> AsyncGenerator[LogEntry, None]:
        """What its programs print, with its history; with ``tail``, goes on with what comes."""
        query = given(
            tail=tail, since=since, until=until, q=q, source=",".join(source) or None, limit=limit
        )
        at = path("sandboxes", self.sandbox_id, "logs")
        async with self._client.open(
            Call("read logs", "GET", at, query=query), SILENCE_SEC_MAX
        ) as reply:
            async for _, data in events(reply):
                entry = parsed(data)
                if entry is not None:
                    yield cast(LogEntry, entry)

    async def download_url(self, file_path: str, *, expires_in: int | None = None) -> str:
        """A URL that reads the file for whoever has it; for an hour, or ``expires_in`` seconds."""
        body = given(path=file_path, expiresIn=expires_in)
        reply = await self._json("get download URL", "POST", "/files/download-url", body, safe=True)
        return str(reply["url"])

    async def upload_url(self, file_path: str, *, expires_in: int | None = None) -> str:
        """A URL that writes the file with a PUT for whoever has it."""
        body = given(path=file_path, expiresIn=expires_in)
        reply = await self._json("get upload URL", "POST", "/files/upload-url", body, safe=True)
        return str(reply["url"])

    async def create_checkpoint(
        self,
        name: str,
        kind: Literal["full", "disk_only"] | None = None,
        promote_to_full: bool | None = None,
        retention_policy: RetentionPolicy | None = None,
    ) -> CheckpointInfo:
        """It may still be ``processing`` when this returns; forks wait for it, patches need it
        ready."""
        body = given(
            name=name, kind=kind, promoteToFull=promote_to_full, retentionPolicy=retention_policy
        )
        reply = await self._json("create checkpoint", "POST", "/checkpoints", body)
        return cast(CheckpointInfo, reply)

    async def list_checkpoints(self) -> builtins.list[CheckpointInfo]:
        """Newest first."""
        reply = await self._json("list checkpoints", "GET", "/checkpoints")
        return cast("builtins.list[CheckpointInfo]", reply)

    async def wait_for_checkpoint(
        self, checkpoint_id: str, *, timeout: float = 120.0
    ) -> CheckpointInfo:
        """Waits until it is ready, in seconds; raises when it failed."""
        until = time.monotonic() + timeout
        while True:
            listed = await self.list_checkpoints()
            found = next((one for one in listed if one["id"] == checkpoint_id), None)
            if found is None or found["status"] not in ("ready", "processing"):
                why = found.get("errorMsg") if found else "it is not there"
                raise OpenComputerError(f"checkpoint {checkpoint_id} is not to be had: {why}")
            if found["status"] == "ready":
                return found
            if time.monotonic() > until:
                text = f"checkpoint {checkpoint_id} was not ready within {timeout:g} s"
                raise ApiTimeoutError(text)
            await anyio.sleep(_CHECKPOINT_POLL_SEC)

    async def restore_checkpoint(self, checkpoint_id: str) -> None:
        """Puts the sandbox back in place; its sessions end."""
        await self._change("restore checkpoint", path("checkpoints", checkpoint_id, "restore"))
        await self.get_info()

    async def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Forks keep working. One that is not there counts as deleted."""
        at = path("sandboxes", self.sandbox_id, "checkpoints", checkpoint_id)
        await self._client.gone(Call("delete checkpoint", "DELETE", at))

    async def create_preview_url(
        self, port: int, domain: str | None = None, auth_config: dict[str, Any] | None = None
    ) -> PreviewURLResult:
        body = given(port=port, domain=domain, authConfig=auth_config or {})
        reply = await self._json("create preview URL", "POST", "/preview", body, safe=True)
        return cast(PreviewURLResult, reply)

    async def list_preview_urls(self) -> builtins.list[PreviewURLResult]:
        return cast(
            "builtins.list[PreviewURLResult]",
            await self._json("list preview URLs", "GET", "/preview"),
        )

    async def delete_preview_url(self, port: int) -> None:
        """One that is not there counts as deleted."""
        at = path("sandboxes", self.sandbox_id, "preview", port)
        await self._client.gone(Call("delete preview URL", "DELETE", at))

    async def rotate_preview_auth_token(self) -> str:
        """A new token for its preview URLs; the old one is void at once."""
        reply = await self._json("rotate preview auth token", "POST", "/preview/rotate")
        self.preview_auth_token = str(reply["previewAuthToken"])
        return self.preview_auth_token

    async def close(self) -> None:
        """Closes the connections of this object; the sandbox goes on."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.kill()
        finally:
            await self.close()

    async def _change(
        self, action: str, below: str, body: dict[str, Any] | None = None, safe: bool = False
    ) -> None:
        at = path("sandboxes", self.sandbox_id) + below
        wait = max(_CHANGE_SEC_MAX, self._client.config.request_timeout)
        repeat: Literal["safe", "never"] = "safe" if safe else "never"
        call = Call(action, "POST", at, json=body, repeat=repeat, timeout=wait)
        await self._client.done(call)

    async def _json(
        self,
        action: str,
        method: str,
        below: str,
        body: dict[str, Any] | None = None,
        safe: bool = False,
    ) -> Any:
        at = path("sandboxes", self.sandbox_id) + below
        slow = below in ("/scale", "/checkpoints") and method == "POST"
        return await self._client.json(
            Call(
                action,
                method,
                at,
                json=body,
                repeat="safe" if safe else None,
                timeout=_CHANGE_SEC_MAX if slow else None,
            )
        )


class _ClosedOnError:
    """Closes the client when the block fails; nobody else would."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            await self._client.aclose()
