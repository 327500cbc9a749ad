"""Named images, built once."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import anyio

from ._http import Call, Client, path
from ._sse import build
from .errors import ApiConnectionError, ApiTimeoutError, BuildError, NotFoundError
from .image import Image
from .types import SnapshotInfo

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._config import ClientOptions

_POLL_SEC_MAX = 5.0


class Snapshots:
    """Snapshots of the organization."""

    def __init__(self, **options: Unpack[ClientOptions]) -> None:
        self._client = Client(**options)

    async def create(
        self, name: str, image: Image, on_build_logs: Callable[[str], object] | None = None
    ) -> SnapshotInfo:
        """Builds an image and keeps it under a name."""
        body = {"name": name, "image": image.to_dict()}
        call = Call("create snapshot", "POST", "/snapshots", json=body)
        return cast(SnapshotInfo, await build(self._client, call, on_build_logs))

    async def list(self) -> builtins.list[SnapshotInfo]:
        reply = await self._client.json(Call("list snapshots", "GET", "/snapshots"))
        return cast("builtins.list[SnapshotInfo]", reply)

    async def get(self, name: str) -> SnapshotInfo:
        reply = await self._client.json(Call("get snapshot", "GET", path("snapshots", name)))
        return cast(SnapshotInfo, reply)

    async def delete(self, name: str) -> None:
        """Sandboxes made from it are not affected. One that is not there counts as deleted."""
        await self._client.gone(Call("delete snapshot", "DELETE", path("snapshots", name)))

    async def wait_until_ready(
        self, name: str, *, timeout: float = 600.0, poll_interval: float = 1.0
    ) -> SnapshotInfo:
        """Waits for a build that is under way, in seconds; raises ``BuildError`` when it fails."""
        until = time.monotonic() + timeout
        while True:
            try:
                snapshot = await self.get(name)
                if snapshot["status"] == "ready":
                    return snapshot
                if snapshot["status"] == "failed":
                    raise BuildError(f"Build failed: {snapshot.get('errorMsg', name)}")
            except (NotFoundError, ApiConnectionError):
                pass  # some servers show a snapshot only once it is built
            if time.monotonic() + poll_interval > until:
                raise ApiTimeoutError(f"snapshot {name} was not ready within {timeout:g} s")
            await anyio.sleep(poll_interval)
            poll_interval = min(poll_interval * 2, _POLL_SEC_MAX)

    async def close(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
