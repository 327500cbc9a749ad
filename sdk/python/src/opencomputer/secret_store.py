"""Secret stores: named sets of sealed secrets, attached to sandboxes at creation."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, cast

from ._http import Call, Client, path
from .types import SecretEntryInfo, SecretStoreInfo

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._config import ClientOptions


class SecretStore:
    """Named secrets for sandboxes. All methods are static."""

    @staticmethod
    async def create(
        name: str,
        egress_allowlist: builtins.list[str] | None = None,
        **options: Unpack[ClientOptions],
    ) -> SecretStoreInfo:
        """The name is unique in the organization."""
        body = _settings(name, egress_allowlist or None)
        call = Call("create secret store", "POST", "/secret-stores", json=body, repeat="keyed")
        async with Client(**options) as client:
            return cast(SecretStoreInfo, await client.json(call))

    @staticmethod
    async def list(**options: Unpack[ClientOptions]) -> builtins.list[SecretStoreInfo]:
        """By name."""
        async with Client(**options) as client:
            reply = await client.json(Call("list secret stores", "GET", "/secret-stores"))
        return cast("builtins.list[SecretStoreInfo]", reply)

    @staticmethod
    async def get(store_id: str, **options: Unpack[ClientOptions]) -> SecretStoreInfo:
        call = Call("get secret store", "GET", path("secret-stores", store_id))
        async with Client(**options) as client:
            return cast(SecretStoreInfo, await client.json(call))

    @staticmethod
    async def update(
        store_id: str,
        name: str = "",
        egress_allowlist: builtins.list[str] | None = None,
        **options: Unpack[ClientOptions],
    ) -> SecretStoreInfo:
        """Only what is given changes. ``egress_allowlist=[]`` lifts the restriction."""
        body = _settings(name, egress_allowlist)
        call = Call("update secret store", "PUT", path("secret-stores", store_id), json=body)
        async with Client(**options) as client:
            return cast(SecretStoreInfo, await client.json(call))

    @staticmethod
    async def delete(store_id: str, **options: Unpack[ClientOptions]) -> None:
        """Deletes the store and its secrets. Running sandboxes are not affected."""
        call = Call("delete secret store", "DELETE", path("secret-stores", store_id))
        async with Client(**options) as client:
            await client.done(call)

    @staticmethod
    async def set_secret(
        store_id: str,
        name: str,
        value: str,
        allowed_hosts: builtins.list[str] | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Sets or replaces a secret, with its hosts. No call gives the value back.

        Without ``allowed_hosts``, every host that the sandbox may reach may receive it.
        """
        body: dict[str, object] = {"value": value}
        if allowed_hosts is not None:
            body["allowedHosts"] = allowed_hosts
        at = path("secret-stores", store_id, "secrets", name)
        async with Client(**options) as client:
            await client.done(Call("set secret", "PUT", at, json=body, secrets=(value,)))

    @staticmethod
    async def list_secrets(
        store_id: str, **options: Unpack[ClientOptions]
    ) -> builtins.list[SecretEntryInfo]:
        """Metadata only."""
        call = Call("list secrets", "GET", path("secret-stores", store_id, "secrets"))
        async with Client(**options) as client:
            return cast("builtins.list[SecretEntryInfo]", await client.json(call))

    @staticmethod
    async def delete_secret(store_id: str, name: str, **options: Unpack[ClientOptions]) -> None:
        """A secret that is not there counts as deleted."""
        at = path("secret-stores", store_id, "secrets", name)
        async with Client(**options) as client:
            await client.gone(Call("delete secret", "DELETE", at))


def _settings(name: str, egress_allowlist: list[str] | None) -> dict[str, object]:
    body: dict[str, object] = {"name": name} if name else {}
    if egress_allowlist is not None:
        body["egressAllowlist"] = egress_allowlist
    return body
