"""WebSockets below ``/api``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from inspect import isawaitable
from typing import TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from ._http import Client
from .errors import ApiConnectionError, ApiTimeoutError

#: The server's messages stay below 64 KiB.
_MESSAGE_BYTES_MAX = 16 * 1024 * 1024
#: The server takes at most 1 MiB.
_PIECE_BYTES_MAX = 256 * 1024
_PING_SEC = 20
#: Longer than the server bears a client that does not read.
_PONG_SEC_MAX = 40
#: Messages that may wait for a reader, of at most 32 KiB each; more is held back at the server.
_MESSAGES_MAX = 512
_CLOSE_SEC_MAX = 2

T = TypeVar("T")
#: Called with each value; what it gives is awaited if it can be.
Callback = Callable[[T], Awaitable[object] | object]
#: Called without a value.
Notify = Callable[[], object]


async def open_socket(client: Client, path: str, action: str) -> ClientConnection:
    """An open connection; a refusal is the server's own error."""
    url = client.config.api_url + path
    headers = {"X-API-Key": client.config.api_key} if client.config.api_key else {}
    limit = client.config.request_timeout
    try:
        return await connect(
            "ws" + url.removeprefix("http"),
            additional_headers=headers,
            compression=None,
            open_timeout=limit,
            ping_interval=_PING_SEC,
            ping_timeout=_PONG_SEC_MAX,
            close_timeout=_CLOSE_SEC_MAX,
            max_size=_MESSAGE_BYTES_MAX,
            max_queue=_MESSAGES_MAX,
        )
    except InvalidStatus as error:
        reply = error.response
        headers_in = {name.lower(): value for name, value in reply.headers.raw_items()}
        content = bytes(reply.body or b"")
        raise client.refused(action, url, reply.status_code, headers_in, content) from None
    except TimeoutError:
        raise ApiTimeoutError(f"Failed to {action}: no answer within {limit:g} s") from None
    except (OSError, InvalidHandshake, EOFError) as error:
        raise ApiConnectionError(f"Failed to {action}: {error}") from None


async def send(socket: ClientConnection, message: bytes | str) -> None:
    try:
        await socket.send(message)
    except ConnectionClosed:
        raise ApiConnectionError("the connection is closed") from None


def pieces(data: str | bytes) -> Iterator[bytes]:
    """Bytes in pieces that fit into a message."""
    raw = data.encode() if isinstance(data, str) else bytes(data)
    for start in range(0, len(raw), _PIECE_BYTES_MAX):
        yield raw[start : start + _PIECE_BYTES_MAX]


async def call(callback: Callback[T] | None, value: T) -> None:
    if callback is None:
        return
    result = callback(value)
    if isawaitable(result):
        await result
