"""One call of the API: its deadline, its retries, its errors."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import anyio
import httpx

from . import _config
from .errors import ApiConnectionError, ApiError, ApiTimeoutError, OpenComputerError, api_error

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

#: Whether a call may be sent again when nobody knows if it arrived. ``safe``: done twice is as done
#: once. ``keyed``: it creates something, and with an ``Idempotency-Key`` the server makes it once.
Repeat = Literal["safe", "keyed", "never"]

_RETRY_STATUS = (502, 503, 504)
_BACKOFF_SEC_MIN = 0.2
_BACKOFF_SEC_MAX = 2.0
_RETRY_AFTER_SEC_MAX = 30.0


@dataclass(frozen=True)
class Call:
    """What is asked. ``action`` is for messages: ``Failed to <action>: …``."""

    action: str
    method: str
    path: str
    query: Mapping[str, str | int | bool | None] = field(default_factory=dict)
    json: Any = field(default=None, repr=False)
    content: bytes | AsyncIterator[bytes] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    repeat: Repeat | None = None
    idempotency_key: str | None = None
    #: Seconds, in place of the client's.
    timeout: float | None = None
    #: What must not be in an error, besides the key.
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def repeatable(self) -> Repeat:
        if self.repeat is not None:
            return self.repeat
        return "never" if self.method in ("POST", "PATCH") else "safe"


def path(*segments: str | int) -> str:
    """A path of these segments, each encoded: no id or name can reach another route."""
    for segment in segments:
        # Dots alone would be taken away with the segment before them.
        if str(segment) in ("", ".", ".."):
            raise ValueError(f"not an id or name: {segment!r}")
    return "".join("/" + quote(str(segment), safe="") for segment in segments)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


class Client:
    """Calls the API. Printing it does not show its key."""

    def __init__(self, **options: Unpack[_config.ClientOptions]) -> None:
        self.config = _config.resolve(**options)
        # Limits are set by call.
        self._http = httpx.AsyncClient(timeout=None)

    def __repr__(self) -> str:
        return f"Client({self.config.api_url!r})"

    async def aclose(self) -> None:
        """Closes its connections; a second time is fine."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def json(self, call: Call) -> Any:
        """JSON of the reply."""
        reply = await self._whole(call)
        try:
            return reply.json()
        except ValueError:
            raise OpenComputerError(f"Failed to {call.action}: the reply is not JSON") from None

    async def done(self, call: Call) -> None:
        """A call whose reply says nothing more than that it was done."""
        await self._whole(call)

    async def gone(self, call: Call) -> None:
        """As ``done``; something that is not there counts as deleted."""
        try:
            await self._whole(call)
        except ApiError as error:
            if error.status != 404:
                raise

    @asynccontextmanager
    async def open(self, call: Call, idle: float) -> AsyncIterator[httpx.Response]:
        """The reply with its body unread; reading ends with an error after ``idle`` seconds of
        silence."""
        deadline = time.monotonic() + self._limit(call)
        reply = await self._send(call, deadline, idle)
        try:
            yield reply
        except httpx.HTTPError as error:
            if isinstance(error, OpenComputerError):
                raise
            raise self._explain(call, error, idle) from None
        finally:
            await reply.aclose()

    def refused(
        self, action: str, url: str, status: int, headers: Mapping[str, str], content: bytes
    ) -> ApiError:
        """For replies to upgrades, which do not come through here."""
        return api_error(action, "GET", url, status, headers, content, (self.config.api_key,))

    def _limit(self, call: Call) -> float:
        return self.config.request_timeout if call.timeout is None else call.timeout

    async def _whole(self, call: Call) -> httpx.Response:
        limit = self._limit(call)
        deadline = time.monotonic() + limit
        reply: httpx.Response | None = None
        with anyio.move_on_after(limit):
            try:
                reply = await self._send(call, deadline, None)
                await reply.aread()
                return reply
            except httpx.HTTPError as error:
                if isinstance(error, OpenComputerError):
                    raise
                raise self._explain(call, error, limit) from None
            finally:
                if reply is not None:
                    with anyio.CancelScope(shield=True):
                        await reply.aclose()
        raise self._late(call, limit)

    async def _send(self, call: Call, deadline: float, idle: float | None) -> httpx.Response:
        """Sends until there is a reply that counts, or no try is left."""
        repeat = call.repeatable()
        replayable = call.content is None or isinstance(call.content, bytes)
        key = (call.idempotency_key or str(uuid.uuid4())) if repeat == "keyed" else None
        tries = 0
        while True:
            left = replayable and tries < self.config.max_retries
            wait = min(_BACKOFF_SEC_MIN * 2**tries, _BACKOFF_SEC_MAX) * random.uniform(0.75, 1.25)
            try:
                reply = await self._once(call, key, deadline, idle)
                if reply.is_success:
                    return reply
                error = await self._failure(call, reply)
                # A delete that arrived before its connection broke.
                if error.status == 404 and call.method == "DELETE" and tries > 0:
                    return httpx.Response(204, request=error.request)
                again = repeat != "never" and error.status in _RETRY_STATUS
                # A first try may still be at work under its key.
                underway = key is not None and error.status == 409 and tries > 0
                # What the server has not begun is no repeat: it may go on until the deadline.
                not_begun = error.retryable and replayable
                if not (not_begun or (left and (again or underway))):
                    raise error
                wait = max(wait, min(error.retry_after or 0.0, _RETRY_AFTER_SEC_MAX))
                failure: OpenComputerError = error
            except httpx.HTTPError as broken:
                if isinstance(broken, OpenComputerError):
                    raise
                failure = self._explain(call, broken, self._limit(call))
                if isinstance(failure, ApiTimeoutError) or repeat == "never" or not left:
                    raise failure from None
            if time.monotonic() + wait >= deadline:
                raise failure
            await anyio.sleep(wait)
            tries += 1

    async def _once(
        self, call: Call, key: str | None, deadline: float, idle: float | None
    ) -> httpx.Response:
        headers = dict(call.headers)
        if self.config.api_key:
            headers["X-API-Key"] = self.config.api_key
        if key is not None:
            headers["Idempotency-Key"] = key
        if call.content is not None:
            headers["Content-Type"] = "application/octet-stream"
        query = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in call.query.items()
            if value is not None
        }
        request = self._http.build_request(
            call.method,
            self.config.api_url + call.path,
            params=query or None,
            json=call.json,
            content=call.content,
            headers=headers,
            timeout=httpx.Timeout(None, read=idle),
        )
        left = deadline - time.monotonic()
        with anyio.move_on_after(left):
            return await self._http.send(request, stream=True)
        raise self._late(call, self._limit(call))

    async def _failure(self, call: Call, reply: httpx.Response) -> ApiError:
        content = b""
        try:
            with anyio.move_on_after(self.config.request_timeout):
                content = await reply.aread()
        except httpx.HTTPError:
            pass  # the status has to do
        finally:
            await reply.aclose()
        secrets = (self.config.api_key, *call.secrets)
        url = self.config.api_url + call.path
        return api_error(
            call.action, call.method, url, reply.status_code, reply.headers, content, secrets
        )

    @staticmethod
    def _late(call: Call, limit: float) -> ApiTimeoutError:
        return ApiTimeoutError(f"Failed to {call.action}: no answer within {limit:g} s")

    def _explain(self, call: Call, error: httpx.HTTPError, limit: float) -> OpenComputerError:
        if isinstance(error, httpx.RequestError):
            # It stays reachable from ours, and must not hold the key or a body.
            error.request = httpx.Request(call.method, self.config.api_url + call.path)
        if isinstance(error, httpx.TimeoutException):
            return self._late(call, limit)
        why = str(error) or type(error).__name__
        return ApiConnectionError(f"Failed to {call.action}: {why}")
