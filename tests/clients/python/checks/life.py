"""Sandbox: hibernate, wake, reboot, power_cycle, scale, autoscale, scaling lock; Tags."""

import opencomputer

from harness import check, plain, refused


async def run(Sandbox):
    """Each version that has these methods, on a sandbox of its own."""
    if not hasattr(Sandbox, "hibernate"):
        return
    async with await Sandbox.create() as sandbox:
        path = f"/sandboxes/{sandbox.sandbox_id}"
        await sandbox.files.write("/home/sandbox/kept", "kept")
        async with check("Sandbox.hibernate", "sleeps, and may be repeated"):
            await sandbox.hibernate()
            assert await _status(path) == "hibernated"
            await sandbox.hibernate()
        async with check("Sandbox.is_running", "false while it sleeps"):
            assert await sandbox.is_running() is False
        async with check("Sandbox.wake", "keeps the disk and sets the timeout"):
            await sandbox.wake(timeout=777)
            assert sandbox.status == "running" and await _status(path) == "running"
            assert (await plain("GET", path))[1]["timeout"] == 777
            assert await sandbox.files.read("/home/sandbox/kept") == "kept"
        async with check("Sandbox.wake", "a call wakes it too"):
            await sandbox.hibernate()
            assert (await sandbox.exec.run("echo hi")).stdout == "hi\n"
            assert await _status(path) == "running"
            await sandbox.wake()
        for how in ("reboot", "power_cycle"):
            async with check(f"Sandbox.{how}", "keeps the disk, ends processes"):
                await sandbox.exec.run("nohup sleep 600 >/dev/null 2>&1 & echo")
                await getattr(sandbox, how)()
                ran = await sandbox.exec.run("pgrep -c sleep; cat kept")
                assert ran.stdout == "0\nkept", ran
        await _sizes(sandbox)
        if hasattr(opencomputer, "Tags"):
            await _tags(sandbox)


async def _status(path):
    return (await plain("GET", path))[1]["status"]


async def _sizes(sandbox):
    ours = {"sandboxID": sandbox.sandbox_id}
    async with check("Sandbox.set_autoscale", "within two tiers"):
        shown = await sandbox.set_autoscale(True, min_memory_mb=1024, max_memory_mb=4096)
        assert shown == ours | {"enabled": True, "minMemoryMB": 1024, "maxMemoryMB": 4096}
    async with check("Sandbox.get_autoscale", "is what was set"):
        assert (await sandbox.get_autoscale())["enabled"] is True
    async with check("Sandbox.scale", "to a tier, and autoscale is off"):
        scaled = await sandbox.scale(4096)
        assert (scaled["memoryMB"], scaled["cpuPercent"]) == (4096, 100)
        assert (await sandbox.get_autoscale())["enabled"] is False
    async with check("Sandbox.set_scaling_lock", "refuses every change"):
        assert await sandbox.set_scaling_lock(True) == ours | {"locked": True}
        try:
            await sandbox.scale(1024)
        except opencomputer.ScalingLockedError:
            pass
        else:
            raise AssertionError("a locked sandbox was scaled")
    async with check("Sandbox.get_scaling_lock", "is what was set"):
        assert await sandbox.get_scaling_lock() == ours | {"locked": True}
        await sandbox.set_scaling_lock(False)
    async with check("Sandbox.scale", "no tier"):
        async with refused("400"):
            await sandbox.scale(1000)


async def _tags(sandbox):
    # Its own way to one, as the package has no other for a sandbox at hand.
    tags = opencomputer.Tags._from_client(sandbox._client)
    async with check("Tags.set", "replaces all of them"):
        shown = await tags.set(sandbox.sandbox_id, {"team": "suite", "env": "test"})
        assert shown[0] == {"team": "suite", "env": "test"} and shown[1]
        await tags.set(sandbox.sandbox_id, {"team": "suite"})
    async with check("Tags.get", "is what was set"):
        assert (await tags.get(sandbox.sandbox_id))[0] == {"team": "suite"}
    async with check("Tags.list_keys", "counts"):
        keys = await tags.list_keys()
        assert [(one.key, one.sandbox_count, one.value_count) for one in keys] == [("team", 1, 1)]
