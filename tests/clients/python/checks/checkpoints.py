"""Sandbox: checkpoints, forks with secrets, restores, patches."""

import asyncio
import inspect

from harness import check, refused


async def run(Sandbox, store):
    """Each version that has these methods, on a sandbox of its own."""
    if not hasattr(Sandbox, "create_checkpoint"):
        return
    async with await Sandbox.create(envs={"COLOUR": "blue"}) as sandbox:
        await sandbox.files.write("/home/sandbox/file", "one")
        taken = None
        async with check("Sandbox.create_checkpoint", "is ready soon"):
            made = await sandbox.create_checkpoint("first")
            assert made["name"] == "first" and made["sandboxId"] == sandbox.sandbox_id
            taken = await _ready(sandbox, made["id"])
            assert taken["sizeBytes"] > 0
        async with check("Sandbox.create_checkpoint", "a name once"):
            async with refused("409"):
                await sandbox.create_checkpoint("first")
        async with check("Sandbox.list_checkpoints", "has it"):
            assert [one["id"] for one in await sandbox.list_checkpoints()] == [taken["id"]]
        await sandbox.files.write("/home/sandbox/file", "two")
        await _forks(Sandbox, sandbox, store, taken["id"])
        async with check("Sandbox.restore_checkpoint", "puts the disk back"):
            await sandbox.restore_checkpoint(taken["id"])
            assert await sandbox.files.read("/home/sandbox/file") == "one"
        await _patches(Sandbox, taken["id"])
        async with check("Sandbox.delete_checkpoint", "is gone, and may be repeated"):
            await sandbox.delete_checkpoint(taken["id"])
            assert await sandbox.list_checkpoints() == []
            await sandbox.delete_checkpoint(taken["id"])


async def _ready(sandbox, checkpoint):
    while True:
        one = next(one for one in await sandbox.list_checkpoints() if one["id"] == checkpoint)
        if one["status"] != "processing":
            assert one["status"] == "ready", one
            return one
        await asyncio.sleep(0.05)


async def _forks(Sandbox, source, store, checkpoint):
    async with check("Sandbox.create_from_checkpoint", "has the disk and the variables of then"):
        async with await Sandbox.create_from_checkpoint(checkpoint, envs={"MORE": "x"}) as fork:
            assert fork.sandbox_id != source.sandbox_id
            assert await fork.files.read("/home/sandbox/file") == "one"
            assert (await fork.commands.run("echo $COLOUR $MORE")).stdout == "blue x\n"
            await fork.files.write("/home/sandbox/file", "fork")
        assert await source.files.read("/home/sandbox/file") == "two"
    if store is None:
        return
    if "secret_store" not in inspect.signature(Sandbox.create_from_checkpoint).parameters:
        return
    async with check("Sandbox.create_from_checkpoint", "with a secret store of its own"):
        made = await store.create(name=f"fork-{checkpoint}")
        await store.set_secret(made["id"], "FORK_KEY", "a-real-value-for-the-fork-42")
        given = {"secret_store": made["name"]}
        async with await Sandbox.create_from_checkpoint(checkpoint, **given) as fork:
            shown = (await fork.commands.run("echo $FORK_KEY")).stdout
            assert shown.startswith("osb_sealed_"), shown
        await store.delete(made["id"])


async def _patches(Sandbox, checkpoint):
    patch = None
    async with check("Sandbox.create_checkpoint_patch", "is numbered"):
        script = "echo patched > /etc/patched"
        reply = await Sandbox.create_checkpoint_patch(checkpoint, script, description="d")
        patch = reply["patch"]
        assert (patch["sequence"], patch["strategy"]) == (1, "on_wake")
    async with check("Sandbox.list_checkpoint_patches", "has it"):
        listed = await Sandbox.list_checkpoint_patches(checkpoint)
        assert [one["id"] for one in listed] == [patch["id"]]
    async with check("Sandbox.create_from_checkpoint", "runs the patches first"):
        async with await Sandbox.create_from_checkpoint(checkpoint) as fork:
            assert await fork.files.read("/etc/patched") == "patched\n"
    async with check("Sandbox.delete_checkpoint_patch", "is gone"):
        await Sandbox.delete_checkpoint_patch(checkpoint, patch["id"])
        assert await Sandbox.list_checkpoint_patches(checkpoint) == []
