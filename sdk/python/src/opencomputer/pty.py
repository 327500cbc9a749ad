"""Shells on a terminal."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from ._http import Call, Client, given, path
from ._socket import Callback, call, open_socket, pieces, send
from .errors import ApiConnectionError

#: Of output nobody reads, the newest is kept.
_UNREAD_BYTES_MAX = 1024 * 1024


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
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._came = asyncio.Event()
        self._reader = asyncio.create_task(self._read(on_output))
        self._reader.add_done_callback(lambda _: self._came.set())

    async def send(self, data: str | bytes) -> None:
        """What a user types."""
        for piece in pieces(data):
            await send(self._socket, piece)

    async def recv(self) -> bytes:
        """The next output, for sessions without ``on_output``.

        Of what nobody reads, the newest MiB is kept. Raises ``ApiConnectionError`` when the shell
        has ended or the session is closed.
        """
        while not self._unread:
            if self._reader.done():
                raise ApiConnectionError("the terminal's connection is closed")
            self._came.clear()
            await self._came.wait()
        piece = self._unread.popleft()
        self._unread_bytes -= len(piece)
        return piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Output as it comes, for sessions without ``on_output``; ends with the session."""
        while True:
            try:
                piece = await self.recv()
            except ApiConnectionError:
                return
            yield piece

    async def wait(self) -> None:
        """Until the shell has ended or the session is closed; raises what a callback raised."""
        await asyncio.shield(self._reader)

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
        # A callback may call this too.
        if asyncio.current_task() is not self._reader:
            await asyncio.wait([self._reader])

    async def __aenter__(self) -> PtySession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self, on_output: Callback[bytes] | None) -> None:
        try:
            while True:
                message = await self._socket.recv()
                piece = message.encode() if isinstance(message, str) else message
                if on_output is not None:
                    await call(on_output, piece)
                else:
                    self._keep(piece)
        except ConnectionClosed:
            pass  # the end, however it came
        finally:
            await self._socket.close()

    def _keep(self, piece: bytes) -> None:
        self._unread.append(piece)
        self._unread_bytes += len(piece)
        while self._unread_bytes > _UNREAD_BYTES_MAX and len(self._unread) > 1:
            self._unread_bytes -= len(self._unread.popleft())
        self._came.set()

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
        socket = await open_socket(self._client, at, "open the WebSocket of a PTY")
        return PtySession(self._client, socket, self._sandbox_id, session_id, on_output)
