"""What a server does not have is told by its documented error, in time; where it has it, it works.

Each feature is tried; a server without it counts as skipped, in print.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

import pytest

import opencomputer as oc

pytestmark = pytest.mark.anyio
T = TypeVar("T")
NOT_THERE = (400, 404, 405, 501, 503)
IMAGE = oc.Image.base().run_commands("echo made > /home/sandbox/made")


@pytest.fixture(scope="module")
async def sandbox(anyio_backend: str) -> AsyncIterator[oc.Sandbox]:
    async with await oc.Sandbox.create(memory_mb=256) as one:
        yield one


async def tried(work: Awaitable[T]) -> T:
    """Tries it; a server that lacks it must say so by one of the documented errors."""
    try:
        return await work
    except oc.ApiError as error:
        assert error.status in NOT_THERE, error
        assert error.reason, "it says why"
        pytest.skip(f"this server does not have it: {error.status} {error.reason}")


async def test_images() -> None:
    logs: list[str] = []
    creation = oc.Sandbox.create(image=IMAGE, on_build_log=logs.append, memory_mb=256)
    async with await tried(creation) as made:
        assert await made.files.read("/home/sandbox/made") == "made\n"
        assert logs


async def test_snapshots() -> None:
    async with oc.Snapshots() as snapshots:
        await tried(snapshots.create("sdk-python", IMAGE))
        assert (await snapshots.wait_until_ready("sdk-python"))["status"] == "ready"
        assert "sdk-python" in [one["name"] for one in await snapshots.list()]
        async with await oc.Sandbox.create(snapshot="sdk-python") as made:
            assert await made.files.read("/home/sandbox/made") == "made\n"
        await snapshots.delete("sdk-python")
        await snapshots.delete("sdk-python")


async def test_templates() -> None:
    async with oc.Template() as templates:
        assert "base" in [one.name for one in await tried(templates.list())]


async def test_preview_urls(sandbox: oc.Sandbox) -> None:
    made = await tried(sandbox.create_preview_url(3000))
    assert made["port"] == 3000
    assert len(await sandbox.list_preview_urls()) == 1
    await sandbox.delete_preview_url(3000)
    assert len(await sandbox.rotate_preview_auth_token()) >= 16


async def test_agent_sessions(sandbox: oc.Sandbox) -> None:
    session = await tried(sandbox.agent.start("hello"))
    assert session.session_id in [one.session_id for one in await sandbox.agent.list()]
    await session.kill()
    await session.wait()


async def test_webhooks() -> None:
    async with oc.Webhooks() as webhooks:
        made = await tried(webhooks.create("https://api.example.test/hook"))
        assert (await webhooks.get_secret(made["id"])).startswith("whsec_")
        await webhooks.delete(made["id"])


async def test_usage() -> None:
    async with oc.Usage() as usage:
        assert (await tried(usage.by_sandbox())).items is not None


async def test_mounts(sandbox: oc.Sandbox) -> None:
    assert await tried(sandbox.mounts.list()) == []
