"""Server-sent events, and the build logs that come by them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx

from ._http import Call, Client
from .errors import BuildError

#: The server sends at least a comment every 15 s.
SILENCE_SEC_MAX = 60.0
#: An image may take long to be fetched before its build says a word.
_BUILD_REPLY_SEC_MAX = 300.0


async def events(reply: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """Name and data of each event; comments are left out."""
    event, data = "message", list[str]()
    async for line in reply.aiter_lines():
        if not line:
            if data:
                yield event, "\n".join(data)
            event, data = "message", []
        elif line.startswith("event:"):
            event = line[6:].lstrip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))


async def build(client: Client, call: Call, on_log: Callable[[str], object] | None) -> Any:
    """A creating call that may take long: its log goes to ``on_log``, its result comes back."""
    wait = max(_BUILD_REPLY_SEC_MAX, client.config.request_timeout)
    call = replace(call, headers={**call.headers, "Accept": "text/event-stream"}, timeout=wait)
    async with client.open(call, SILENCE_SEC_MAX) as reply:
        if "text/event-stream" not in reply.headers.get("content-type", ""):
            return json.loads(await reply.aread())
        async for event, data in events(reply):
            said = parsed(data)
            fields = said if isinstance(said, dict) else {}
            if event == "build_log":
                if on_log is not None:
                    on_log(str(fields.get("message", data)))
            elif event == "error":
                raise BuildError(f"Build failed: {fields.get('error', data)}")
            elif event == "result":
                return said
    raise BuildError("No result received from build stream")


def parsed(data: str) -> Any:
    """None for what is not JSON."""
    try:
        return json.loads(data)
    except ValueError:
        return None
