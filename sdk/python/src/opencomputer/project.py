"""Projects: shared defaults and sealed secrets for the sandboxes created with them."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, cast

from ._http import Call, Client, path
from .types import ProjectInfo

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._config import ClientOptions


class Project:
    """Groups sandboxes with shared defaults and secrets. All methods are static."""

    @staticmethod
    async def create(
        name: str,
        template: str = "",
        cpu_count: int = 0,
        memory_mb: int = 0,
        timeout_sec: int = 0,
        egress_allowlist: builtins.list[str] | None = None,
        **options: Unpack[ClientOptions],
    ) -> ProjectInfo:
        """The name is unique in the organization. What is left out gets the server's default."""
        body = _settings(
            name, template, cpu_count, memory_mb, timeout_sec, egress_allowlist or None
        )
        call = Call("create project", "POST", "/projects", json=body, repeat="keyed")
        async with Client(**options) as client:
            return cast(ProjectInfo, await client.json(call))

    @staticmethod
    async def list(**options: Unpack[ClientOptions]) -> builtins.list[ProjectInfo]:
        """By name."""
        async with Client(**options) as client:
            reply = await client.json(Call("list projects", "GET", "/projects"))
        return cast("builtins.list[ProjectInfo]", reply)

    @staticmethod
    async def get(project_id: str, **options: Unpack[ClientOptions]) -> ProjectInfo:
        call = Call("get project", "GET", path("projects", project_id))
        async with Client(**options) as client:
            return cast(ProjectInfo, await client.json(call))

    @staticmethod
    async def update(
        project_id: str,
        name: str = "",
        template: str = "",
        cpu_count: int = 0,
        memory_mb: int = 0,
        timeout_sec: int = 0,
        egress_allowlist: builtins.list[str] | None = None,
        **options: Unpack[ClientOptions],
    ) -> ProjectInfo:
        """Only what is given changes. ``egress_allowlist=[]`` lifts the restriction."""
        body = _settings(name, template, cpu_count, memory_mb, timeout_sec, egress_allowlist)
        call = Call("update project", "PUT", path("projects", project_id), json=body)
        async with Client(**options) as client:
            return cast(ProjectInfo, await client.json(call))

    @staticmethod
    async def delete(project_id: str, **options: Unpack[ClientOptions]) -> None:
        """Deletes the project and its secrets. Running sandboxes are not affected."""
        async with Client(**options) as client:
            await client.done(Call("delete project", "DELETE", path("projects", project_id)))

    @staticmethod
    async def set_secret(
        project_id: str,
        name: str,
        value: str,
        allowed_hosts: builtins.list[str] | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Sets or replaces a secret. No call gives the value back.

        Without ``allowed_hosts``, every host that the sandbox may reach may receive it.
        """
        body: dict[str, object] = {"value": value}
        if allowed_hosts is not None:
            body["allowedHosts"] = allowed_hosts
        at = path("projects", project_id, "secrets", name)
        async with Client(**options) as client:
            await client.done(Call("set secret", "PUT", at, json=body, secrets=(value,)))

    @staticmethod
    async def list_secrets(project_id: str, **options: Unpack[ClientOptions]) -> builtins.list[str]:
        """Names only."""
        call = Call("list secrets", "GET", path("projects", project_id, "secrets"))
        async with Client(**options) as client:
            return cast("builtins.list[str]", await client.json(call))

    @staticmethod
    async def delete_secret(project_id: str, name: str, **options: Unpack[ClientOptions]) -> None:
        """A secret that is not there counts as deleted."""
        at = path("projects", project_id, "secrets", name)
        async with Client(**options) as client:
            await client.gone(Call("delete secret", "DELETE", at))


def _settings(
    name: str,
    template: str,
    cpu_count: int,
    memory_mb: int,
    timeout_sec: int,
    egress_allowlist: list[str] | None,
) -> dict[str, object]:
    fields = {
        "name": name,
        "template": template,
        "cpuCount": cpu_count,
        "memoryMB": memory_mb,
        "timeoutSec": timeout_sec,
    }
    body: dict[str, object] = {field: value for field, value in fields.items() if value}
    if egress_allowlist is not None:
        body["egressAllowlist"] = egress_allowlist
    return body
