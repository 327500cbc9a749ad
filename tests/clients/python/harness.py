"""Runs checks, writes what they found (see lib/report.py), and holds the suite to its word: every
public method of the package is checked, named as not yet served, or another service's."""

import asyncio
import inspect
import json
import os
import re
import traceback
from contextlib import asynccontextmanager

import anyio
import httpx

CHECK_SEC_MAX = 60
_checked: set[str] = set()


def _report(line: dict) -> None:
    with open(os.environ["OC_RESULTS"], "a") as results:
        results.write(json.dumps(line) + "\n")


@asynccontextmanager
async def check(method: str, what: str):
    """One check of one method: it passes when the block ends without an exception."""
    _checked.add(method)
    line = {"method": method, "check": what, "result": "passed"}
    try:
        with anyio.fail_after(CHECK_SEC_MAX):
            yield
    except Exception:
        line |= {"result": "failed", "detail": traceback.format_exc(limit=-3)}
    _report(line)


def name(result: str, methods: list[str]) -> None:
    """Methods that no check calls, with the reason."""
    for method in methods:
        _report({"method": method, "check": "", "result": result})


def public_methods(kind: type) -> set[str]:
    """Methods and properties; not the fields of a dataclass."""
    members = vars(kind).items()
    taken = (staticmethod, classmethod, property)
    return {
        key
        for key, value in members
        if not key.startswith("_") and (inspect.isfunction(value) or isinstance(value, taken))
    }


async def every_method_is_accounted_for(
    classes: dict[str, type], package, named: list[str]
) -> None:
    """Fails when the package has a public method that the suite neither checks nor names."""
    async with check("suite", "every public method is checked or named"):
        missing = set()
        for row, kind in classes.items():
            missing |= {f"{row}.{method}" for method in public_methods(kind)}
        for exported in package.__all__:
            kind = getattr(package, exported)
            if not inspect.isclass(kind) or issubclass(kind, Exception):
                continue
            if public_methods(kind) and kind not in classes.values():
                missing.add(exported)
        missing -= _checked | set(named)
        assert not missing, sorted(missing)


def done() -> None:
    _report({"done": True})


async def plain(method: str, path: str, body=None):
    """A plain call of the API, for what this version has no method for."""
    url = os.environ["OPENCOMPUTER_API_URL"] + "/api" + path
    headers = {"X-API-Key": os.environ["OPENCOMPUTER_API_KEY"]}
    async with httpx.AsyncClient(timeout=30) as client:
        reply = await client.request(method, url, headers=headers, json=body)
    return reply.status_code, reply.json() if reply.content else None


@asynccontextmanager
async def refused(pattern: str):
    """The block must fail, with this in its message or in the server's reply."""
    try:
        yield
    except Exception as error:
        reply = getattr(error, "response", None)
        try:
            said = getattr(reply, "text", "")
        except Exception:  # a streamed reply that nobody has read
            said = ""
        text = f"{type(error).__name__} {error} {said}"
        assert re.search(pattern, text, re.DOTALL), f"refused otherwise: {text}"
        return
    raise AssertionError("it was not refused")


async def eventually(what: str, seconds: float, probe):
    """Polls until `probe` gives something true."""
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        value = probe()
        value = await value if inspect.isawaitable(value) else value
        if value:
            return value
        await asyncio.sleep(0.1)
    raise AssertionError(f"did not happen within {seconds} s: {what}")


class Collector:
    """Collects what callbacks get, as bytes."""

    def __init__(self):
        self.stdout, self.stderr, self.exit, self.replayed = b"", b"", None, False

    def callbacks(self) -> dict:
        return self.streams() | {"on_exit": self._on_exit, "on_scrollback_end": self._on_end}

    def streams(self) -> dict:
        return {"on_stdout": self._on_stdout, "on_stderr": self._on_stderr}

    def _on_stdout(self, data: bytes) -> None:
        self.stdout += data

    def _on_stderr(self, data: bytes) -> None:
        self.stderr += data

    def _on_exit(self, code: int) -> None:
        self.exit = code

    def _on_end(self) -> None:
        self.replayed = True
