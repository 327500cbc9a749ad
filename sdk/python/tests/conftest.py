"""What several test files need."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

# A suite that runs without a server to test would show nothing.
if "OPENCOMPUTER_API_URL" not in os.environ:
    raise pytest.UsageError("OPENCOMPUTER_API_URL is not set: start the tests with sdk/run")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Has ``sdk/run`` print why a test was skipped."""
    report = yield
    if report.skipped and call.excinfo is not None and "OC_SKIPS" in os.environ:
        with open(os.environ["OC_SKIPS"], "a") as skips:  # noqa: PTH123
            skips.write(f"python: {item.name}: {call.excinfo.value}\n")
    return report


async def eventually(what: str, probe: Callable[[], Awaitable[object] | object]) -> None:
    """Polls until ``probe`` gives something true; generous, since machines are busy."""
    until = asyncio.get_running_loop().time() + 30
    while True:
        value = probe()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        if asyncio.get_running_loop().time() > until:
            raise AssertionError(f"did not happen within 30 s: {what}")
        await asyncio.sleep(0.05)


@dataclass
class Seen:
    method: str
    url: str
    headers: dict[str, str]
    body: bytes


#: Status, body and headers; None hangs up, a number of seconds says nothing for that long.
Answer = tuple[int, Any, dict[str, str]] | tuple[int, Any] | float | None


@dataclass
class Fake:
    url: str = ""
    seen: list[Seen] = field(default_factory=list)


@asynccontextmanager
async def fake(answer: Callable[[Seen, int], Answer]) -> AsyncIterator[Fake]:
    """A server that answers as told and remembers what it was asked."""
    server = Fake()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, url, _ = head[0].split(" ")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            seen = Seen(method, url, headers, body)
            server.seen.append(seen)
            said = answer(seen, len(server.seen))
            if isinstance(said, (int, float)):
                await asyncio.sleep(said)
            elif said is not None:
                writer.write(_reply(*said))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()


def _reply(status: int, body: Any, headers: dict[str, str] | None = None) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", "connection": "close"} | (headers or {})
    if "content-length" not in fields:
        fields["content-length"] = str(len(data))
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data
