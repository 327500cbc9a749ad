"""Commands in a sandbox: run to the end, or as sessions with their output as it comes."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from ._http import Call, Client, given, path
from ._socket import Callback, Notify, call, open_socket, pieces, send
from .shell import Shell

_TIMEOUT_SEC_DEFAULT = 60
#: Time for the reply on top of the command's own.
_GRACE_SEC = 30.0

_STDIN, _STDOUT, _STDERR, _EXIT, _REPLAY_END = range(5)


@dataclass
class ProcessResult:
    """``exit_code`` -1: it was ended by its timeout, or by the sandbox's end."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass
class ExecSessionInfo:
    session_id: str
    sandbox_id: str
    command: str
    args: builtins.list[str] = field(default_factory=list)
    running: bool = False
    exit_code: int | None = None
    started_at: str = ""
    attached_clients: int = 0


@dataclass
class ExecOutput:
    """A piece of output, or the exit, which is the last one."""

    type: Literal["stdout", "stderr", "exit"]
    data: bytes = b""
    #: -1: the connection ended before the command told its exit.
    exit_code: int | None = None


class ExecSession:
    """A running command with its input and output. Closing it leaves the command alone."""

    def __init__(
        self,
        socket: ClientConnection,
        exec: Exec,
        session_id: str,
        on_stdout: Callback[bytes] | None = None,
        on_stderr: Callback[bytes] | None = None,
        on_exit: Callback[int] | None = None,
        on_scrollback_end: Notify | None = None,
    ) -> None:
        self.session_id = session_id
        self.sandbox_id = exec._sandbox_id
        self._exec = exec
        self._socket = socket
        self._callbacks: dict[int, Callback[bytes] | None] = {
            _STDOUT: on_stdout,
            _STDERR: on_stderr,
        }
        self._on_exit = on_exit
        self._on_scrollback_end = on_scrollback_end
        self._exit_code: int | None = None
        self._done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())

    @property
    def done(self) -> asyncio.Future[int]:
        """The exit code; -1 when the connection ended without one."""
        return self._done

    @property
    def disconnected(self) -> bool:
        """The connection ended although the command had not: ``exec.attach`` goes on with it."""
        return self._done.done() and self._exit_code is None

    async def send_stdin(self, data: str | bytes) -> None:
        for piece in pieces(data):
            await send(self._socket, bytes([_STDIN]) + piece)

    async def close_stdin(self) -> None:
        """Tells the command that no more input comes."""
        await send(self._socket, bytes([_STDIN]))

    async def kill(self, signal: int = 9) -> None:
        """Signals the process group."""
        await self._exec.kill(self.session_id, signal)

    async def close(self) -> None:
        """Lets go of the session; the command goes on."""
        await self._socket.close()
        # A callback may call this too.
        if asyncio.current_task() is not self._reader:
            await asyncio.wait([self._reader])

    async def __aenter__(self) -> ExecSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self) -> None:
        try:
            while True:
                message = await self._socket.recv()
                if isinstance(message, bytes) and message:
                    await self._take(message[0], message[1:])
        except ConnectionClosed:
            await self._end(None)
        except Exception as error:  # a callback's own
            if not self._done.done():
                self._done.set_exception(error)
            await self._socket.close()
        finally:
            if not self._done.done():
                self._done.set_result(-1)

    async def _take(self, kind: int, payload: bytes) -> None:
        if kind in self._callbacks:
            await call(self._callbacks[kind], payload)
        elif kind == _REPLAY_END and self._on_scrollback_end is not None:
            self._on_scrollback_end()
        elif kind == _EXIT and len(payload) >= 4:
            await self._end(int.from_bytes(payload[:4], "big", signed=True))

    async def _end(self, code: int | None) -> None:
        if self._done.done():
            return
        self._exit_code = code
        shown = -1 if code is None else code
        self._done.set_result(shown)
        await call(self._on_exit, shown)


class Exec:
    """Runs commands in one sandbox."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id

    async def run(
        self,
        command: str,
        timeout: int = _TIMEOUT_SEC_DEFAULT,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> ProcessResult:
        """Runs a shell command and waits for its end; every exit code is a result.

        After ``timeout`` seconds the command is killed.
        """
        body = given(cmd="sh", args=["-c", command], timeout=timeout, envs=env, cwd=cwd)
        limit = (timeout if timeout > 0 else _TIMEOUT_SEC_DEFAULT) + _GRACE_SEC
        at = path("sandboxes", self._sandbox_id, "exec", "run")
        asked = Call("run command", "POST", at, json=body, repeat="keyed", timeout=limit)
        reply = await self._client.json(asked)
        stderr = reply.get("stderr") or reply.get("error") or ""
        return ProcessResult(reply.get("exitCode", -1), reply.get("stdout", ""), stderr)

    async def start(
        self,
        command: str,
        args: builtins.list[str] | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        timeout: int | None = None,
        max_run_after_disconnect: int | None = None,
        on_stdout: Callback[bytes] | None = None,
        on_stderr: Callback[bytes] | None = None,
        on_exit: Callback[int] | None = None,
        on_scrollback_end: Notify | None = None,
    ) -> ExecSession:
        """Starts a command and attaches to it.

        Without ``args`` it is a shell command line; with them there is no shell. What it prints
        before the client is attached is kept up to 1 MiB; ``stream`` gives all of it.
        """
        session_id = await self._create(command, args, env, cwd, timeout, max_run_after_disconnect)
        return await self.attach(session_id, on_stdout, on_stderr, on_exit, on_scrollback_end)

    #: The same as ``start``.
    background = start

    async def stream(
        self,
        command: str,
        args: builtins.list[str] | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        timeout: int | None = None,
    ) -> AsyncGenerator[ExecOutput, None]:
        """All of a command's output as it comes, then its exit.

        16 MiB may wait for the reader; more is held back, which the server bears for 30 s without
        a read. Leaving the loop early kills the command once the iterator is closed
        (``contextlib.aclosing`` does so at once)::

            async for piece in sandbox.exec.stream("npm test"):
                print(piece.exit_code if piece.type == "exit" else piece.data.decode())
        """
        session_id = await self._create("sh", _gated(command, args), env, cwd, timeout, None)
        socket, ended = None, False
        kinds: dict[int, Literal["stdout", "stderr"]] = {_STDOUT: "stdout", _STDERR: "stderr"}
        try:
            socket = await self._open(session_id)
            await send(socket, bytes([_STDIN]) + b"\n")
            while not ended:
                try:
                    message = await socket.recv()
                except ConnectionClosed:
                    ended = True
                    yield ExecOutput("exit", exit_code=-1)
                    return
                if not isinstance(message, bytes) or not message:
                    continue
                kind, payload = message[0], message[1:]
                if kind in kinds:
                    yield ExecOutput(kinds[kind], payload)
                elif kind == _EXIT:
                    ended = True
                    yield ExecOutput(
                        "exit", exit_code=int.from_bytes(payload[:4], "big", signed=True)
                    )
        finally:
            with anyio.move_on_after(self._client.config.request_timeout, shield=True):
                if socket is not None:
                    await socket.close()
                if not ended:
                    await self.kill(session_id)

    async def attach(
        self,
        session_id: str,
        on_stdout: Callback[bytes] | None = None,
        on_stderr: Callback[bytes] | None = None,
        on_exit: Callback[int] | None = None,
        on_scrollback_end: Notify | None = None,
    ) -> ExecSession:
        """Attaches to a session, also to one that has ended: its output (the newest MiB) first."""
        socket = await self._open(session_id)
        return ExecSession(
            socket, self, session_id, on_stdout, on_stderr, on_exit, on_scrollback_end
        )

    async def list(self) -> builtins.list[ExecSessionInfo]:
        """Running sessions, and those that ended in the last five minutes."""
        at = path("sandboxes", self._sandbox_id, "exec")
        return [
            ExecSessionInfo(
                session_id=one["sessionID"],
                sandbox_id=one["sandboxID"],
                command=one["command"],
                args=one.get("args") or [],
                running=one["running"],
                exit_code=one.get("exitCode"),
                started_at=one.get("startedAt", ""),
                attached_clients=one.get("attachedClients", 0),
            )
            for one in await self._client.json(Call("list exec sessions", "GET", at))
        ]

    async def kill(self, session_id: str, signal: int = 9) -> None:
        """Signals the session's process group."""
        at = path("sandboxes", self._sandbox_id, "exec", session_id, "kill")
        await self._client.done(Call("kill exec session", "POST", at, json={"signal": signal}))

    async def shell(self, cwd: str | None = None, env: dict[str, str] | None = None) -> Shell:
        """A shell that keeps its folder, variables and functions from one command to the next."""
        args = ["--noprofile", "--norc", "+m"]
        return await self.reattach_shell(await self._create("bash", args, env, cwd, None, None))

    async def reattach_shell(self, session_id: str) -> Shell:
        """Goes on with the shell of an earlier ``shell``."""
        return await Shell._attach(self, session_id)

    async def _create(
        self,
        command: str,
        args: builtins.list[str] | None,
        env: dict[str, str] | None,
        cwd: str | None,
        timeout: int | None,
        max_run_after_disconnect: int | None,
    ) -> str:
        body = given(
            cmd=command,
            args=args,
            envs=env,
            cwd=cwd,
            timeout=timeout,
            maxRunAfterDisconnect=max_run_after_disconnect,
        )
        at = path("sandboxes", self._sandbox_id, "exec")
        asked = Call("create exec session", "POST", at, json=body, repeat="keyed")
        return str((await self._client.json(asked))["sessionID"])

    async def _open(self, session_id: str) -> ClientConnection:
        at = path("sandboxes", self._sandbox_id, "exec", session_id)
        return await open_socket(self._client, at, "open the WebSocket of an exec session")


def _gated(command: str, args: list[str] | None) -> list[str]:
    """Arguments of a ``sh`` that waits for a line of input, then becomes the command.

    Of what is printed before the first client attaches, the server keeps the newest MiB: so
    nothing may be.
    """
    wait = "read -r OC_GO; unset OC_GO; exec"
    if args is None:
        return ["-c", f'{wait} sh -c "$1"', "sh", command]
    return ["-c", f'{wait} "$@"', "sh", command, *args]
