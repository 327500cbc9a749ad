"""Image and Snapshots: hashes, builds with their logs, sandboxes from both."""

import inspect
import tempfile
import time
from pathlib import Path

import opencomputer
from harness import check, refused


def _image(folder: Path, client: str):
    (folder / "sub").mkdir()
    (folder / "sub" / "t.txt").write_text("from a folder")
    (folder / "one.txt").write_text("from a file")
    return (
        opencomputer.Image.base()
        # Its own for each client: what another one has built would be found.
        .env({"PLACE": "über all", "CLIENT": client})
        .workdir("/srv/app")
        .add_file("/srv/app/inline.txt", "inline")
        .add_local_file(str(folder / "one.txt"), "/srv/app/one.txt")
        .add_local_dir(str(folder), "/srv/dir")
        .run_commands("echo built by the client", "cat /srv/dir/sub/t.txt > ~/seen")
    )


async def run(Sandbox, store, client: str) -> None:
    """Each version that has these classes."""
    if not hasattr(opencomputer, "Image"):
        return
    with tempfile.TemporaryDirectory() as folder:
        image = _image(Path(folder), client)
    used = "base env workdir add_file add_local_file add_local_dir run_commands"
    for method in used.split():
        async with check(f"Image.{method}", "is used below"):
            pass
    async with check("Image.apt_install", "makes a step"):
        step = opencomputer.Image.base().apt_install(["curl"]).to_dict()["steps"][0]
        assert step == {"type": "apt_install", "args": {"packages": ["curl"]}}
    async with check("Image.pip_install", "makes a step"):
        step = opencomputer.Image.base().pip_install(["x"]).to_dict()["steps"][0]
        assert step["type"] == "pip_install"
    if hasattr(image, "builder_memory"):
        async with check("Image.builder_memory", "is no part of the key"):
            assert image.builder_memory(2048).cache_key() == image.cache_key()
    name = f"{client}-{time.time_ns()}"
    snapshots = opencomputer.Snapshots()
    log = []
    async with check("Snapshots.create", "builds, and tells its log"):
        made = await snapshots.create(name, image, on_build_logs=log.append)
        assert (made["name"], made["status"]) == (name, "ready")
        assert "built by the client" in log, log
    async with check("Snapshots.get", "has what was sent"):
        one = await snapshots.get(name)
        assert one["checkpointId"] and one["lastUsedAt"]
    async with check("Image.to_dict", "comes back as it was sent"):
        assert (await snapshots.get(name))["manifest"] == image.to_dict()
    async with check("Image.cache_key", "is known to the server"):
        assert image.cache_key() in (await snapshots.get(name))["cacheKeys"]
    async with check("Snapshots.create", "a name once"):
        async with refused("409"):
            await snapshots.create(name, image)
    async with check("Snapshots.list", "has it"):
        assert name in [one["name"] for one in await snapshots.list()]
    await _sandboxes(Sandbox, store, image, name)
    async with check("Snapshots.delete", "is gone, and may be repeated"):
        await snapshots.delete(name)
        await snapshots.delete(name)
        async with refused("404"):
            await snapshots.get(name)
    async with check("Snapshots.close", "closes"):
        await snapshots.close()


async def _sandboxes(Sandbox, store, image, name) -> None:
    assert "snapshot" in inspect.signature(Sandbox.create).parameters
    async with check("Sandbox.create", "from a snapshot with a secret store"):
        made = await store.create(name=f"store-{name}")
        await store.set_secret(made["id"], "WORKER_KEY", "a-real-value-for-the-worker-7")
        given = {"snapshot": name, "secret_store": made["name"]}
        async with await Sandbox.create(**given) as sandbox:
            line = "pwd; echo $PLACE; cat ~/seen inline.txt one.txt; echo; echo $WORKER_KEY"
            shown = (await sandbox.exec.run(line)).stdout
            wanted = "/srv/app\nüber all\nfrom a folderinlinefrom a file\nosb_sealed_"
            assert shown.startswith(wanted), shown
        await store.delete(made["id"])
    async with check("Sandbox.create", "from an image, which is built once"):
        lines = []
        async with await Sandbox.create(image=image, on_build_log=lines.append) as sandbox:
            # Its HTTP client goes on asking for events, and gets what is right.
            assert (await sandbox.exec.run("cat ~/seen")).stdout == "from a folder"
            assert await sandbox.files.read("/srv/app/inline.txt") == "inline"
        assert any("cached" in line for line in lines), lines
    async with check("Sandbox.create", "a failing step throws its output"):
        bad = opencomputer.Image.base().run_commands("echo the reason; exit 3")
        async with refused("the reason"):
            await Sandbox.create(image=bad)
