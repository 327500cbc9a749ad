"""Where the server is and who calls: arguments, then the environment, then the public origin."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TypedDict

DEFAULT_ORIGIN = "https://app.opencomputer.dev"
REQUEST_SEC_DEFAULT = 30.0
RETRIES_DEFAULT = 3


class ClientOptions(TypedDict, total=False):
    """Taken by every class and every static method, as keywords."""

    #: Default: ``OPENCOMPUTER_API_KEY``.
    api_key: str | None
    #: Default: ``OPENCOMPUTER_API_URL``, then the public service. ``/api`` is added when missing.
    api_url: str | None
    #: Longest an ordinary call may take, in seconds, with its retries. Default 30.
    request_timeout: float | None
    #: How often a call that does nothing twice is sent again after a broken connection or a
    #: 502, 503 or 504. Default 3.
    max_retries: int | None


@dataclass(frozen=True)
class Config:
    """Options with nothing left to find out. Printing it does not show the key."""

    api_url: str
    request_timeout: float
    max_retries: int
    api_key: str = field(repr=False)


def resolve(
    api_key: str | None = None,
    api_url: str | None = None,
    request_timeout: float | None = None,
    max_retries: int | None = None,
) -> Config:
    """``api_url`` of the result ends in ``/api``."""
    url = (api_url or os.environ.get("OPENCOMPUTER_API_URL") or DEFAULT_ORIGIN).rstrip("/")
    key = os.environ.get("OPENCOMPUTER_API_KEY", "") if api_key is None else api_key
    return Config(
        api_url=url if url.endswith("/api") else f"{url}/api",
        request_timeout=REQUEST_SEC_DEFAULT if request_timeout is None else request_timeout,
        max_retries=RETRIES_DEFAULT if max_retries is None else max_retries,
        api_key=key,
    )
