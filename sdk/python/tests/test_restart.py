"""No call hangs when the server or the sandbox dies under it, and what may be repeated survives.

The server is killed as by a crash and started again at the same address.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import httpx
import pytest

import opencomputer as oc

pytestmark = pytest.mark.anyio
LONG = "sleep 300"


async def control(what: str) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        reply = await client.post(f"{os.environ['OC_CONTROL_URL']}/{what}")
        assert reply.status_code == 204


async def test_everything_that_waits_ends_when_the_server_dies() -> None:
    sandbox = await oc.Sandbox.create(memory_mb=256)
    session = await sandbox.exec.start(LONG)
    shell = await sandbox.exec.shell()
    pty = await sandbox.pty.create()

    async def stream() -> int | None:
        return [one async for one in sandbox.exec.stream(LONG)][-1].exit_code

    async def logs() -> None:
        async for _ in sandbox.logs():
            pass

    calls = [sandbox.exec.run(LONG, timeout=300), shell.run(LONG), stream(), logs()]
    waiting = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0.5)
    await control("kill")
    assert await session.done == -1
    assert session.disconnected
    with pytest.raises(oc.ApiConnectionError):
        while True:
            await pty.recv()
    ran, shelled, streamed, logged = await asyncio.wait_for(
        asyncio.gather(*waiting, return_exceptions=True), 120
    )
    assert isinstance(ran, oc.ApiConnectionError)
    assert isinstance(shelled, oc.ShellClosedError)
    assert streamed == -1
    assert isinstance(logged, oc.ApiConnectionError)
    with pytest.raises(oc.ApiConnectionError):
        await oc.Project.list(max_retries=0)
    assert not await sandbox.is_running()
    assert not await sandbox.files.exists("/tmp")

    # A creation that finds nobody is made once, when the server is back.
    creation = oc.Project.create("survives", max_retries=60, request_timeout=60)
    created = asyncio.ensure_future(creation)
    await control("start")
    await oc.Project.delete((await created)["id"])
    assert (await sandbox.exec.run("echo still here")).stdout == "still here\n"
    again = await sandbox.exec.attach(session.session_id)
    await again.kill()
    assert await again.done in (137, -1)
    await sandbox.kill()
    await sandbox.close()


@pytest.mark.parametrize("end", ["kill", "power_cycle"])
async def test_everything_that_waits_ends_with_the_sandboxs_processes(end: str) -> None:
    sandbox = await oc.Sandbox.create(memory_mb=256)
    session = await sandbox.exec.start(LONG)
    running = asyncio.ensure_future(sandbox.exec.run(LONG, timeout=300))
    pty = await sandbox.pty.create()
    await asyncio.sleep(0.5)
    other = await oc.Sandbox.connect(sandbox.id)
    await (other.kill() if end == "kill" else other.power_cycle())
    assert await asyncio.wait_for(session.done, 60) != 0
    await asyncio.wait_for(pty.wait(), 60)
    with contextlib.suppress(oc.OpenComputerError):
        assert (await asyncio.wait_for(running, 60)).exit_code != 0
    await other.kill()
    await other.close()
    await sandbox.close()
