"""One published version of `opencomputer-sdk`; what a version lacks is found by looking at it."""

import asyncio
import importlib.metadata
import sys

import opencomputer
from checks import (
    checkpoints, commands, files, images, life, sandboxes, sealing, sessions, signed, stores, terminals,
)
from harness import check, done, every_method_is_accounted_for, name

NOT_YET = {
    "Sandbox": (
        "rotate_preview_auth_token create_preview_url list_preview_urls delete_preview_url "
        "agent mounts"
    ).split(),
}
NOT_YET_CLASSES = (
    "Template Agent AgentEvent AgentSession Mounts Usage"
)
# Browsers are a service of their own (contract, section 30).
ELSEWHERE = "Browser BrowserProfile"
# Rows of the table that other clients give another name.
ROWS = {"Agent": "SandboxAgent", "Template": "Templates"}


def subjects() -> dict[str, type]:
    """Classes whose every method is checked, by the name of their rows."""
    found = {"Sandbox": opencomputer.Sandbox, "files": opencomputer.Filesystem}
    exported = {"SecretStore": "SecretStore", "exec": "Exec", "Tags": "Tags", "pty": "Pty"}
    exported |= {"Image": "Image", "Snapshots": "Snapshots"}
    exported |= {"session": "ExecSession", "shell": "Shell", "PtySession": "PtySession"}
    for row, kind in exported.items():
        if hasattr(opencomputer, kind):
            found[row] = getattr(opencomputer, kind)
    # Until 0.4.0 commands were a class of their own with the one method `run`.
    found.setdefault("exec", getattr(opencomputer, "Commands", None))
    return found


async def main(version: str) -> None:
    async with check("suite", "the version asked for is the one installed"):
        assert importlib.metadata.version("opencomputer-sdk") == version
    # Classes of later versions are absent from earlier ones.
    store = getattr(opencomputer, "SecretStore", None)
    if store:
        await stores.run(store, f"python-{version}")
    sandbox = await sandboxes.run(opencomputer.Sandbox)
    if sandbox:
        await commands.run(sandbox)
        await sessions.run(sandbox)
        await terminals.run(sandbox)
        await files.run(sandbox)
        if hasattr(sandbox, "download_url"):
            await signed.run(sandbox)
        await life.run(opencomputer.Sandbox)
        await checkpoints.run(opencomputer.Sandbox, store)
        await images.run(opencomputer.Sandbox, store, f"python-{version}")
        await sealing.run(opencomputer.Sandbox, store, f"python-{version}")
        await sandbox.kill()
        await sandbox.close()
    methods = [f"Sandbox.{one}" for one in NOT_YET["Sandbox"] if hasattr(opencomputer.Sandbox, one)]
    classes = [one for one in NOT_YET_CLASSES.split() if hasattr(opencomputer, one)]
    others = [one for one in ELSEWHERE.split() if hasattr(opencomputer, one)]
    name("not yet", [*methods, *(ROWS.get(one, one) for one in classes)])
    name("elsewhere", others)
    await every_method_is_accounted_for(subjects(), opencomputer, [*methods, *classes, *others])
    done()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
