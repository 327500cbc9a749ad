"""Tries two things from the same state: a checkpoint, and a fork for each."""

import asyncio

from opencomputer import Sandbox


async def main() -> None:
    async with await Sandbox.create() as base:
        await base.files.write("config", "colour=blue\n")
        checkpoint = await base.create_checkpoint("configured")

        async def attempt(colour: str) -> str:
            async with await Sandbox.create_from_checkpoint(checkpoint["id"]) as fork:
                await fork.exec.run(f"sed -i s/blue/{colour}/ config")
                return (await fork.files.read("config")).strip()

        tries = await asyncio.gather(attempt("green"), attempt("red"))
        print(tries, "while the first one has", (await base.files.read("config")).strip())


asyncio.run(main())
