"""Runs a command in a sandbox that holds a sealed secret.

OPENCOMPUTER_API_URL and OPENCOMPUTER_API_KEY say which server and who.
"""

import asyncio
import time

from opencomputer import Project, Sandbox


async def main() -> None:
    project = await Project.create(f"quickstart-{time.time_ns()}", memory_mb=512)
    try:
        await Project.set_secret(
            project["id"], "API_KEY", "the-real-value", allowed_hosts=["api.example.com"]
        )
        async with await Sandbox.create(project=project["name"]) as sandbox:
            result = await sandbox.exec.run('echo "inside, the key is $API_KEY"')
            print(f"exit code {result.exit_code}: {result.stdout.strip()}")
    finally:
        await Project.delete(project["id"])


asyncio.run(main())
