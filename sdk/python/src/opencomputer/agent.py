"""Agent sessions: a program in the sandbox that speaks JSON lines, over an exec session."""

from __future__ import annotations

import builtins
import codecs
import json
from dataclasses import dataclass, field
from typing import Any

from ._http import Call, Client, given, path
from ._socket import Callback, call
from ._sse import parsed
from .exec import Exec, ExecSession
from .types import McpServerConfig


@dataclass
class AgentEvent:
    """``type``: ``ready``, ``configured``, ``assistant``, ``result``, ``turn_complete``, …"""

    type: str
    data: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.data.get(key, default)


@dataclass
class AgentSessionInfo:
    session_id: str
    sandbox_id: str
    running: bool
    started_at: str = ""


class AgentSession:
    """An attached agent."""

    def __init__(
        self,
        client: Client,
        sandbox_id: str,
        session_id: str,
        on_event: Callback[AgentEvent] | None,
        on_error: Callback[str] | None,
    ) -> None:
        self.sandbox_id = sandbox_id
        self.session_id = session_id
        self._client = client
        self._on_event = on_event
        self._on_error = on_error
        self._events: list[AgentEvent] = []
        self._out = codecs.getincrementaldecoder("utf-8")("replace")
        self._err = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._session: ExecSession | None = None

    async def send_prompt(self, text: str) -> None:
        await self._say({"type": "prompt", "text": text})

    async def interrupt(self) -> None:
        await self._say({"type": "interrupt"})

    async def configure(
        self,
        model: str | None = None,
        system_prompt: str | None = None,
        allowed_tools: list[str] | None = None,
        permission_mode: str | None = None,
        max_turns: int | None = None,
        cwd: str | None = None,
    ) -> None:
        fields = given(
            model=model,
            systemPrompt=system_prompt,
            allowedTools=allowed_tools,
            permissionMode=permission_mode,
            maxTurns=max_turns,
            cwd=cwd,
        )
        await self._say({"type": "configure", **fields})

    async def collect_events(self) -> list[AgentEvent]:
        """Waits for the end; every event since the client attached."""
        await self.wait()
        return list(self._events)

    async def wait(self) -> int:
        """The exit code; -1 when the connection ended without one."""
        return await self._attached().done

    async def kill(self, signal: int = 9) -> None:
        at = path("sandboxes", self.sandbox_id, "agent", self.session_id, "kill")
        await self._client.done(Call("kill agent session", "POST", at, json={"signal": signal}))

    async def close(self) -> None:
        await self._attached().close()

    async def __aenter__(self) -> AgentSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _attached(self) -> ExecSession:
        if self._session is None:
            raise RuntimeError("sessions come from sandbox.agent")
        return self._session

    async def _say(self, line: dict[str, Any]) -> None:
        await self._attached().send_stdin(json.dumps(line) + "\n")

    async def _stdout(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + self._out.decode(data)).split("\n")
        for line in lines:
            await self._line(line)

    async def _exit(self, _: int) -> None:
        line, self._rest = self._rest, ""
        await self._line(line)

    async def _line(self, line: str) -> None:
        if not line.strip():
            return
        said = parsed(line)
        if isinstance(said, dict) and isinstance(said.get("type"), str):
            event = AgentEvent(said["type"], said)
            self._events.append(event)
            await call(self._on_event, event)
        else:
            await call(self._on_error, f"non-JSON stdout: {line}")

    async def _stderr(self, data: bytes) -> None:
        await call(self._on_error, self._err.decode(data))


class Agent:
    """Starts agents in one sandbox."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id

    async def start(
        self,
        prompt: str | None = None,
        model: str | None = None,
        system_prompt: str | None = None,
        allowed_tools: builtins.list[str] | None = None,
        permission_mode: str | None = None,
        max_turns: int | None = None,
        cwd: str | None = None,
        mcp_servers: dict[str, McpServerConfig] | None = None,
        on_event: Callback[AgentEvent] | None = None,
        on_error: Callback[str] | None = None,
        *,
        resume: str | None = None,
    ) -> AgentSession:
        body = given(
            prompt=prompt,
            model=model,
            systemPrompt=system_prompt,
            allowedTools=allowed_tools,
            permissionMode=permission_mode,
            maxTurns=max_turns,
            cwd=cwd,
            mcpServers=mcp_servers,
            resume=resume,
        )
        at = path("sandboxes", self._sandbox_id, "agent")
        reply = await self._client.json(Call("create agent session", "POST", at, json=body))
        return await self.attach(reply["sessionID"], on_event, on_error)

    async def attach(
        self,
        session_id: str,
        on_event: Callback[AgentEvent] | None = None,
        on_error: Callback[str] | None = None,
    ) -> AgentSession:
        session = AgentSession(self._client, self._sandbox_id, session_id, on_event, on_error)
        session._session = await Exec(self._client, self._sandbox_id).attach(
            session_id, session._stdout, session._stderr, session._exit
        )
        return session

    async def list(self) -> builtins.list[AgentSessionInfo]:
        at = path("sandboxes", self._sandbox_id, "agent")
        return [
            AgentSessionInfo(
                one["sessionID"], one["sandboxID"], one["running"], one.get("startedAt", "")
            )
            for one in await self._client.json(Call("list agent sessions", "GET", at))
        ]
