"""Files of a sandbox, read and written with root's rights. Relative paths start at
``/home/sandbox``."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from ._http import Call, Client
from ._http import path as at
from ._sse import SILENCE_SEC_MAX
from .errors import BadRequestError, NotFoundError, OpenComputerError

#: For a body of unknown or large size; the server takes at most 2 GiB.
_WRITE_SEC_MAX = 600.0
_SMALL_BYTES = 1024 * 1024


@dataclass
class EntryInfo:
    name: str
    is_dir: bool
    #: Absolute.
    path: str
    #: In bytes.
    size: int = 0


class Filesystem:
    """Reads and writes files of one sandbox."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id

    async def read(self, path: str) -> str:
        """A file as text; bytes that are no UTF-8 become U+FFFD."""
        return (await self.read_bytes(path)).decode("utf-8", "replace")

    async def read_bytes(self, path: str) -> bytes:
        return b"".join([piece async for piece in self.read_stream(path)])

    async def read_stream(self, path: str) -> AsyncGenerator[bytes, None]:
        """A file of any size, in pieces."""
        async with self._client.open(self._call("read", "GET", "", path), SILENCE_SEC_MAX) as reply:
            async for piece in reply.aiter_bytes():
                yield piece

    async def write(self, path: str, content: str | bytes | AsyncIterator[bytes]) -> None:
        """Writes a whole file; folders on the way are made. An iterator is sent as it comes."""
        data = content.encode() if isinstance(content, str) else content
        small = isinstance(data, bytes) and len(data) <= _SMALL_BYTES
        call = Call(
            f"write {path}",
            "PUT",
            at("sandboxes", self._sandbox_id, "files"),
            query={"path": path},
            content=data,
            timeout=None if small else _WRITE_SEC_MAX,
        )
        await self._client.done(call)

    async def list(self, path: str = "/") -> builtins.list[EntryInfo]:
        """A folder's entries by name, hidden ones too."""
        return [
            EntryInfo(one["name"], one["isDir"], one["path"], one.get("size", 0))
            for one in await self._client.json(self._call("list", "GET", "/list", path))
        ]

    async def make_dir(self, path: str) -> None:
        """Makes a folder with those on the way; one that is there is fine."""
        await self._client.done(self._call("mkdir", "POST", "/mkdir", path))

    async def remove(self, path: str) -> None:
        """Deletes a file, or a folder with everything in it. A missing one counts as deleted."""
        await self._client.done(self._call("remove", "DELETE", "", path))

    async def exists(self, path: str) -> bool:
        """Whether there is a file or folder. False also when that cannot be found out."""
        try:
            async with self._client.open(self._call("read", "GET", "", path), SILENCE_SEC_MAX):
                return True
        except (NotFoundError, BadRequestError):
            pass
        except OpenComputerError:
            return False
        try:
            await self.list(path)
        except OpenComputerError:
            return False
        return True

    def _call(self, what: str, method: str, below: str, path: str) -> Call:
        base = at("sandboxes", self._sandbox_id, "files")
        return Call(f"{what} {path}", method, base + below, query={"path": path}, repeat="safe")
