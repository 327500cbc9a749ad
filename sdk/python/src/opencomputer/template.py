"""Templates: images from Dockerfiles."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._http import Call, Client, path

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._config import ClientOptions

_BUILD_SEC_MAX = 300.0


@dataclass
class TemplateInfo:
    template_id: str
    name: str
    tag: str
    #: ``building``, ``ready`` or ``failed``.
    status: str


class Template:
    """Templates of the organization, and the public ones."""

    def __init__(self, **options: Unpack[ClientOptions]) -> None:
        self._client = Client(**options)

    @classmethod
    def _from_client(cls, client: Client) -> Self:
        """What earlier packages offered: the connection of a sandbox is used again."""
        made = cls.__new__(cls)
        made._client = client
        return made

    async def build(self, name: str, dockerfile: str) -> TemplateInfo:
        body = {"name": name, "dockerfile": dockerfile}
        call = Call("build template", "POST", "/templates", json=body, timeout=_BUILD_SEC_MAX)
        return _info(await self._client.json(call))

    async def list(self) -> builtins.list[TemplateInfo]:
        reply = await self._client.json(Call("list templates", "GET", "/templates"))
        return [_info(one) for one in reply]

    async def get(self, name: str) -> TemplateInfo:
        call = Call("get template", "GET", path("templates", name))
        return _info(await self._client.json(call))

    async def delete(self, name: str) -> None:
        await self._client.done(Call("delete template", "DELETE", path("templates", name)))

    async def close(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _info(one: dict[str, Any]) -> TemplateInfo:
    return TemplateInfo(one["templateID"], one["name"], one["tag"], one["status"])
