"""Other file systems inside a sandbox."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from typing import Any

from ._http import Call, Client, given
from ._http import path as at


@dataclass
class MountInfo:
    path: str
    driver: str
    read_only: bool
    remote: str | None = None
    backend: str | None = None
    rclone_version: str | None = None
    command: builtins.list[str] | None = None
    env: dict[str, str] = field(default_factory=dict)


class Mounts:
    """Mounts of one sandbox."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._path = at("sandboxes", sandbox_id, "mounts")

    async def add(
        self,
        path: str,
        remote: str,
        backend: str | None = None,
        creds: dict[str, str] | None = None,
        rclone_config: str | None = None,
        read_only: bool = True,
        mount_options: builtins.list[str] | None = None,
    ) -> MountInfo:
        """A remote of rclone. ``creds`` and ``rclone_config`` are never given back."""
        body = given(
            path=path,
            driver="rclone",
            remote=remote,
            backend=backend,
            creds=creds,
            rcloneConfig=rclone_config,
            readOnly=read_only,
            mountOptions=mount_options,
        )
        return await self._add(body, (*(creds or {}).values(), rclone_config or ""))

    async def add_command(
        self,
        path: str,
        command: builtins.list[str],
        env: dict[str, str] | None = None,
        secrets: dict[str, str] | None = None,
        read_only: bool = True,
    ) -> MountInfo:
        """A mount by a command of yours; ``{mountpoint}`` in it stands for the path."""
        body = given(
            path=path,
            driver="command",
            command=command,
            env=env,
            secrets=secrets,
            readOnly=read_only,
        )
        return await self._add(body, tuple((secrets or {}).values()))

    async def list(self) -> builtins.list[MountInfo]:
        reply = await self._client.json(Call("list mounts", "GET", self._path))
        return [_info(one) for one in reply]

    async def remove(self, path: str) -> None:
        """One that is not there counts as removed."""
        call = Call("remove mount", "DELETE", self._path, query={"path": path})
        await self._client.gone(call)

    async def _add(self, body: dict[str, Any], secrets: tuple[str, ...]) -> MountInfo:
        call = Call("add mount", "POST", self._path, json=body, secrets=secrets)
        return _info(await self._client.json(call))


def _info(one: dict[str, Any]) -> MountInfo:
    return MountInfo(
        one["path"],
        one["driver"],
        one["readOnly"],
        one.get("remote"),
        one.get("backend"),
        one.get("rcloneVersion"),
        one.get("command"),
        one.get("env") or {},
    )
