"""One bash that takes one command after the other. The end of each command is found by a marker on
each of its streams, made anew for every command."""

from __future__ import annotations

import asyncio
import codecs
import re
import uuid
from typing import TYPE_CHECKING

from ._socket import Callback, call
from .errors import ApiConnectionError, ShellBusyError, ShellClosedError

if TYPE_CHECKING:
    from .exec import Exec, ExecSession, ProcessResult

_CLOSE_SEC_MAX = 5.0


class _Until:
    """Text of a stream up to its marker."""

    def __init__(self, prefix: str, whole: str, on_data: Callback[bytes] | None) -> None:
        self.text = ""
        #: What the marker says, once it has come.
        self.end: str | None = None
        self._prefix, self._whole, self._on_data = prefix, re.compile(whole), on_data
        self._rest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def take(self, data: bytes) -> None:
        if self.end is not None:
            return
        self._rest += self._decoder.decode(data)
        at = self._rest.find(self._prefix)
        # The end of what is there may be the marker's beginning.
        safe = at if at >= 0 else len(self._rest) - self._overlap()
        seen, self._rest = self._rest[:safe], self._rest[safe:]
        if seen:
            self.text += seen
            await call(self._on_data, seen.encode())
        if at >= 0 and (found := self._whole.match(self._rest)):
            self.end = found[1]

    def _overlap(self) -> int:
        longest = min(len(self._prefix) - 1, len(self._rest))
        return next((n for n in range(longest, 0, -1) if self._rest[-n:] == self._prefix[:n]), 0)


class _Running:
    def __init__(self, stdout: _Until, stderr: _Until) -> None:
        self.stdout, self.stderr = stdout, stderr
        self.result: asyncio.Future[ProcessResult] = asyncio.get_running_loop().create_future()


class Shell:
    """Opened by ``sandbox.exec.shell``."""

    def __init__(self) -> None:
        self._session: ExecSession | None = None
        self._running: _Running | None = None
        self._replayed = asyncio.Event()
        self._closed = ""

    @classmethod
    async def _attach(cls, exec: Exec, session_id: str) -> Shell:
        """Returns when the replay is over: what an earlier client saw is not shown again."""
        shell = cls()
        shell._session = await exec.attach(
            session_id, shell._stdout, shell._stderr, shell._exit, shell._replayed.set
        )
        await shell._replayed.wait()
        return shell

    @property
    def session_id(self) -> str:
        return self._session.session_id if self._session else ""

    async def run(
        self,
        cmd: str,
        on_stdout: Callback[bytes] | None = None,
        on_stderr: Callback[bytes] | None = None,
    ) -> ProcessResult:
        """Runs one command line and waits for its end.

        What it changes (folder, variables, functions) is there for the next one.
        """
        if self._closed or self._session is None:
            raise ShellClosedError(self._closed)
        if self._running is not None:
            raise ShellBusyError
        token = uuid.uuid4().hex
        inner = cmd if cmd.strip() else ":"
        # The line feed before the brace ends a comment or a here-document of the command.
        line = (
            f"{{ {inner}\n}} ; __oc_code=$? ; printf '\\n__OC_%s_DONE__\\n' {token} ; "
            f"printf '\\n__OC_%s_EXIT_%d__\\n' {token} \"$__oc_code\" >&2\n"
        )
        running = self._running = _Running(
            _Until(f"\n__OC_{token}_DONE__\n", r"\n__OC_\w+?_DONE_(_)\n", on_stdout),
            _Until(f"\n__OC_{token}_EXIT_", r"\n__OC_\w+?_EXIT_(\d+)__\n", on_stderr),
        )
        try:
            await self._session.send_stdin(line)
        except ApiConnectionError:
            self._end("its connection ended")
        return await running.result

    async def close(self) -> None:
        """Ends bash; a command that is still running gets 5 s, then it is killed."""
        session = self._session
        if session is None:
            return
        if not self._closed:
            self._closed = "it was closed"
            try:
                await session.send_stdin("exit\n")
                await asyncio.wait([session.done], timeout=_CLOSE_SEC_MAX)
                if not session.done.done():
                    await session.kill()
            except ApiConnectionError:
                pass  # it had ended before
        await session.close()

    async def __aenter__(self) -> Shell:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _stdout(self, data: bytes) -> None:
        if self._running is not None and self._replayed.is_set():
            await self._running.stdout.take(data)
            self._complete()

    async def _stderr(self, data: bytes) -> None:
        if self._running is not None and self._replayed.is_set():
            await self._running.stderr.take(data)
            self._complete()

    def _exit(self, code: int) -> None:
        self._end("its connection ended" if code == -1 else f"bash exited with code {code}")
        self._replayed.set()

    def _complete(self) -> None:
        from .exec import ProcessResult

        running = self._running
        if running is None or running.stdout.end is None or running.stderr.end is None:
            return
        self._running = None
        if not running.result.done():
            code = int(running.stderr.end)
            running.result.set_result(ProcessResult(code, running.stdout.text, running.stderr.text))

    def _end(self, reason: str) -> None:
        self._closed = self._closed or reason
        running, self._running = self._running, None
        if running is not None and not running.result.done():
            running.result.set_exception(ShellClosedError(reason))
