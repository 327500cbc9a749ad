"""What can go wrong. No error holds an API key, a secret value or the headers of a request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

_TEXT_CHARS_MAX = 8192
# Shorter texts would take out more than the secret.
_SECRET_CHARS_MIN = 4


class OpenComputerError(Exception):
    """Everything this library raises by itself is one of these."""


class ApiError(OpenComputerError, httpx.HTTPStatusError):
    """The server answered with a status that is no success.

    Also an ``httpx.HTTPStatusError``; its request and response are copies without credentials.
    """

    status: int
    #: The server's own words, from the reply's ``error``.
    reason: str
    #: Stable word for a case that programs tell apart, for example ``scaling_locked``.
    code: str | None
    #: ``X-Request-Id``: the server's log names the request by it.
    request_id: str | None
    #: Seconds, when the server said how long to wait.
    retry_after: float | None
    #: The server did nothing and says that the same call may succeed soon.
    retryable: bool
    #: All fields of the reply.
    body: Mapping[str, Any]

    def __init__(self, action: str, response: httpx.Response, text: str) -> None:
        shown = text[:_TEXT_CHARS_MAX]
        message = f"Failed to {action}: {response.status_code} {shown}".rstrip()
        httpx.HTTPStatusError.__init__(self, message, request=response.request, response=response)
        self.body = _object(text)
        error, code = self.body.get("error"), self.body.get("code")
        self.status = response.status_code
        self.reason = error if isinstance(error, str) else shown
        self.code = code if isinstance(code, str) else None
        self.request_id = response.headers.get("x-request-id")
        self.retry_after = _seconds(response.headers.get("retry-after"))
        self.retryable = self.body.get("retryable") is True or self.body.get("waking") is True


class BadRequestError(ApiError):
    """400: the request, or the state its object is in."""


class AuthenticationError(ApiError):
    """401: no key, or one that is not valid."""


class PlanLimitError(ApiError):
    """402: the plan does not allow it."""


class PermissionDeniedError(ApiError):
    """403."""


class ScalingLockedError(PermissionDeniedError):
    """403 ``scaling_locked``: unlock with ``sandbox.set_scaling_lock(False)``."""


class SandboxFamilyLimitError(PermissionDeniedError):
    """403 ``sandbox_family_scale_disabled``: this kind of sandbox cannot be resized."""


class NotFoundError(ApiError):
    """404: no such object, or one of another organization."""


class ConflictError(ApiError):
    """409: a name that is taken, or a state that does not allow it."""


class GoneError(ApiError):
    """410: the sandbox has been killed or has failed."""


class RateLimitError(ApiError):
    """429: too many sandboxes at once; ``body`` has ``active`` and ``limit``."""


class ServerError(ApiError):
    """5xx."""


class UnavailableError(ServerError):
    """503: no room, waking, or not there at the moment."""


class ApiConnectionError(OpenComputerError, httpx.TransportError):
    """No reply came: the server could not be reached, or the connection broke."""


class ApiTimeoutError(OpenComputerError, httpx.TimeoutException, TimeoutError):
    """The call took longer than it may. What was asked for may have been done all the same."""


class BuildError(OpenComputerError):
    """An image or a snapshot could not be built."""


class ShellBusyError(OpenComputerError):
    """A shell runs one command at a time."""

    def __init__(self) -> None:
        super().__init__("shell is already running a command; shell.run is foreground-only")


class ShellClosedError(OpenComputerError):
    """The shell has ended, also by a command of its own such as ``exit``."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(f"shell is closed: {reason}" if reason else "shell is closed")


class WebhookVerificationError(OpenComputerError):
    """A webhook's signature is missing, wrong or too old."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: PlanLimitError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    429: RateLimitError,
    503: UnavailableError,
}
_BY_CODE: dict[str, type[ApiError]] = {
    "scaling_locked": ScalingLockedError,
    "sandbox_family_scale_disabled": SandboxFamilyLimitError,
}


def api_error(
    action: str,
    method: str,
    url: str,
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    secrets: Iterable[str],
) -> ApiError:
    """The class that fits a reply. A reply that echoes its request must not give secrets away."""
    text = clean(content.decode("utf-8", "replace"), secrets)
    kept = {
        name: clean(value, secrets)
        for name, value in headers.items()
        if name.lower() in ("content-type", "retry-after", "x-request-id", "date")
    }
    request = httpx.Request(method, url)
    response = httpx.Response(status, headers=kept, content=text.encode(), request=request)
    fallback = ServerError if status >= 500 else ApiError
    kind = _BY_STATUS.get(status, fallback)
    if status == 403:
        kind = _BY_CODE.get(str(_object(text).get("code")), kind)
    return kind(action, response, text)


def clean(text: str, secrets: Iterable[str]) -> str:
    """The text with secrets taken out, as they are and as JSON (inside JSON) spells them."""
    for secret in secrets:
        if len(secret) >= _SECRET_CHARS_MIN:
            for spelt in _spellings(secret):
                text = text.replace(spelt, "[secret]")
    return text


def _spellings(secret: str) -> list[str]:
    """The longest first."""
    spelt = [secret]
    for ascii_only in (True, False):
        once = json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
        spelt += [once, json.dumps(once, ensure_ascii=ascii_only)[1:-1]]
    return sorted(spelt, key=len, reverse=True)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}  # some proxy's page
    return value if isinstance(value, dict) else {}


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value > 0 else None
