"""Shells on a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from ._http import Call, Client, given, path
from ._socket import Callback, call, open_socket, pieces, send
from .errors import ApiConnectionError


class PtySession:
    """An attached terminal. Closing it leaves the shell alone."""

    def __init__(
        self,
        client: Client,
        socket: ClientConnection,
        sandbox_id: str,
        session_id: str,
        on_output: Callback[bytes] | None = None,
    ) -> None:
        self.sandbox_id = sandbox_id
        self.session_id = session_id
        self._client = client
        self._socket = socket
        self._reader = asyncio.create_task(self._read(on_output)) if on_output else None

    async def send(self, data: str | bytes) -> None:
        """What a user types."""
        for piece in pieces(data):
            await send(self._socket, piece)

    async def recv(self) -> bytes:
        """The next output, for sessions without ``on_output``.

        Raises ``ApiConnectionError`` when the shell has ended or the session is closed.
        """
        try:
            message = await self._socket.recv()
        except ConnectionClosed:
            raise ApiConnectionError("the terminal's connection is closed") from None
        return message.encode() if isinstance(message, str) else message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Output as it comes, for sessions without ``on_output``; ends with the session."""
        while True:
            try:
                yield await self.recv()
            except ApiConnectionError:
                return

    async def wait(self) -> None:
        """Until the shell has ended or the session is closed."""
        await self._socket.wait_closed()
        if self._reader is not None:
            await self._reader

    async def resize(self, cols: int, rows: int) -> None:
        size = {"cols": cols, "rows": rows}
        at = self._path() + "/resize"
        await self._client.done(Call("resize PTY", "POST", at, json=size, repeat="safe"))

    async def kill(self) -> None:
        """Ends the shell. One that has ended is fine."""
        await self._client.gone(Call("kill PTY", "DELETE", self._path()))
        await self.close()

    async def close(self) -> None:
        """Lets go of the terminal; the shell goes on for up to ten minutes without a client."""
        await self._socket.close()
        if self._reader is not None:
            await asyncio.wait([self._reader])

    async def __aenter__(self) -> PtySession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self, on_output: Callback[bytes]) -> None:
        async for piece in self:
            await call(on_output, piece)

    def _path(self) -> str:
        return path("sandboxes", self.sandbox_id, "pty", self.session_id)


class Pty:
    """Opens terminals in one sandbox."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id

    async def create(
        self,
        cols: int = 80,
        rows: int = 24,
        on_output: Callback[bytes] | None = None,
        *,
        shell: str | None = None,
        cwd: str | None = None,
        envs: dict[str, str] | None = None,
    ) -> PtySession:
        """Starts a shell on a terminal and attaches to it."""
        body = given(cols=cols, rows=rows, shell=shell, cwd=cwd, envs=envs)
        at = path("sandboxes", self._sandbox_id, "pty")
        reply = await self._client.json(Call("create PTY", "POST", at, json=body, repeat="keyed"))
        return await self.attach(reply["sessionID"], on_output)

    async def attach(self, session_id: str, on_output: Callback[bytes] | None = None) -> PtySession:
        """Attaches to a terminal; what it last showed (at most 1 MiB) comes first."""
        at = path("sandboxes", self._sandbox_id, "pty", session_id)
        socket = await open_socket(self._client, at, "attach to PTY")
        return PtySession(self._client, socket, self._sandbox_id, session_id, on_output)
