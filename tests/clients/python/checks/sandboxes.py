"""Sandbox: create, connect, is_running, set_timeout, get_allowed_hosts, kill, close."""

import re

from harness import check, plain, refused


async def run(Sandbox):
    """Checks; returns a running sandbox for the other subjects."""
    shared = None
    async with check("Sandbox.create", "with nothing asked"):
        shared = await Sandbox.create()
        assert re.fullmatch(r"sb-[0-9a-z]{8,}", shared.sandbox_id), shared.sandbox_id
        assert shared.status == "running"
        assert shared.template == "base"
    if shared is None:
        return None
    path = f"/sandboxes/{shared.sandbox_id}"

    async with check("Sandbox.create", "timeout, as this version sends it"):
        # 0.3.0 and 0.5.2 send 300, later ones 0: never.
        default = Sandbox.create.__func__.__defaults__[1]
        assert (await plain("GET", path))[1]["timeout"] == default
    if hasattr(shared, "domain"):
        async with check("Sandbox.domain", "is the preview host of port 80"):
            assert shared.domain == (await plain("GET", path))[1]["domain"]
    if hasattr(Sandbox, "id"):
        async with check("Sandbox.id", "is sandbox_id"):
            assert shared.id == shared.sandbox_id
    if hasattr(shared, "end_at"):
        async with check("Sandbox.end_at", "no hard end"):
            assert shared.end_at is None
    await _creation(Sandbox)
    await _connecting(Sandbox, shared)
    if hasattr(Sandbox, "get_allowed_hosts"):
        async with check("Sandbox.get_allowed_hosts", "no store: no restriction"):
            expected = {"egressAllowlist": [], "perSecretAllowedHosts": {}}
            assert await shared.get_allowed_hosts() == expected | {"sandboxID": shared.sandbox_id}
    async with check("Sandbox.set_timeout", "is stored"):
        await shared.set_timeout(1234)
        assert (await plain("GET", path))[1]["timeout"] == 1234
    async with check("Sandbox.set_timeout", "negative is refused"):
        async with refused("400"):
            await shared.set_timeout(-1)
    await _ending(Sandbox)
    return shared


async def _creation(Sandbox):
    async with check("Sandbox.create", "envs, metadata, timeout"):
        sandbox = await Sandbox.create(
            timeout=600, envs={"GREETING": "hallo welt"}, metadata={"purpose": "suite"}
        )
        async with sandbox:
            shown = (await plain("GET", f"/sandboxes/{sandbox.sandbox_id}"))[1]
            assert shown["timeout"] == 600
            assert shown["metadata"] == {"purpose": "suite"}
            assert "envs" not in shown
            assert (await sandbox.commands.run("echo $GREETING")).stdout == "hallo welt\n"
    if "memory_mb" in Sandbox.create.__func__.__code__.co_varnames:
        async with check("Sandbox.create", "memory_mb, disk_mb, burst"):
            sandbox = await Sandbox.create(memory_mb=512, disk_mb=20480, burst=True)
            async with sandbox:
                shown = (await plain("GET", f"/sandboxes/{sandbox.sandbox_id}"))[1]
                assert (shown["memoryMB"], shown["diskMB"]) == (512, 20480)
    async with check("Sandbox.create", "refusals say why"):
        async with refused("404.*template not found: nope"):
            await Sandbox.create(template="nope")
        async with refused("400"):
            await Sandbox.create(timeout=-1)
        async with refused("401.*invalid API key"):
            await Sandbox.create(api_key="osb_" + "0" * 64)


async def _connecting(Sandbox, shared):
    async with check("Sandbox.connect", "to a running one"):
        again = await Sandbox.connect(shared.sandbox_id)
        assert again.sandbox_id == shared.sandbox_id
        assert (again.status, again.template) == ("running", "base")
        assert (await again.commands.run("echo hi")).stdout == "hi\n"
        await again.close()
    async with check("Sandbox.connect", "to an unknown one"):
        async with refused("404"):
            await Sandbox.connect("sb-00000000000000000000000000")
    async with check("Sandbox.is_running", "running"):
        assert await shared.is_running() is True
        assert shared.status == "running"


async def _ending(Sandbox):
    async with check("Sandbox.kill", "ends it for good, and may be repeated"):
        sandbox = await Sandbox.create()
        await sandbox.kill()
        assert sandbox.status == "stopped"
        await sandbox.kill()
        async with refused("410"):
            await sandbox.commands.run("true")
        async with refused("410"):
            await sandbox.files.read("/etc/passwd")
        async with check("Sandbox.is_running", "false after the kill"):
            assert await sandbox.is_running() is False
        await sandbox.close()
    async with check("Sandbox.close", "leaves the sandbox alone"):
        sandbox = await Sandbox.create()
        await sandbox.close()
        again = await Sandbox.connect(sandbox.sandbox_id)
        async with again:
            assert await again.is_running() is True
    async with check("Sandbox.kill", "at the end of `async with`"):
        async with await Sandbox.create() as sandbox:
            assert await sandbox.is_running()
        assert (await plain("GET", f"/sandboxes/{sandbox.sandbox_id}"))[1]["status"] == "stopped"
