"""Shows a command's output as it comes, and reads a file of its result."""

import asyncio
import sys

from opencomputer import Sandbox

COMMAND = "for i in 1 2 3; do echo line $i; sleep 0.2; done; seq 1000 > numbers"


async def main() -> None:
    async with await Sandbox.create(timeout=300) as sandbox:
        async for piece in sandbox.exec.stream(COMMAND):
            if piece.type == "exit":
                print("exit code", piece.exit_code)
            else:
                sys.stdout.write(piece.data.decode())
        size = 0
        async for data in sandbox.files.read_stream("numbers"):
            size += len(data)
        print(f"numbers has {size} bytes")


asyncio.run(main())
