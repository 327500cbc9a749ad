"""exec.run, or commands.run as it was called in 0.3.0: routes exec/run and commands."""

import asyncio
import time

from harness import check, eventually, refused


async def run(sandbox):
    commands = sandbox.commands

    async def output(command, **options):
        return (await commands.run(command, **options)).stdout

    async with check("exec.run", "a quick command"):
        result = await commands.run("echo out; echo err >&2")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "out\n", "err\n")
    async with check("exec.run", "a slow one"):
        result = await commands.run("echo early; sleep 1.5; echo late")
        assert (result.exit_code, result.stdout) == (0, "early\nlate\n")
    async with check("exec.run", "longer than the first byte may take"):
        # The server sends blanks before the reply; this client gives up after 30 s of silence.
        started = time.monotonic()
        assert await output("sleep 12; echo alive", timeout=40) == "alive\n"
        assert time.monotonic() - started < 20
    async with check("exec.run", "a non-zero exit is a result, not an error"):
        assert (await commands.run("exit 42")).exit_code == 42
        assert (await commands.run("no-such-command-at-all")).exit_code == 127
    async with check("exec.run", "the timeout kills the whole group"):
        command = "echo begun; sleep 300 & echo $! >/tmp/background; sleep 300"
        result = await commands.run(command, timeout=1)
        assert (result.exit_code, result.stdout) == (-1, "begun\n"), result
        assert result.stderr.endswith("\nProcess timed out"), result.stderr

        async def gone():
            probe = await commands.run("! kill -0 $(cat /tmp/background) 2>/dev/null")
            return probe.exit_code == 0

        await eventually("its child is gone", 5, gone)
    async with check("exec.run", "env"):
        env = {"A": "1 2", "B": "ü$x'\""}
        assert await output('printf %s "$A|$B"', env=env) == "1 2|ü$x'\""
        assert await output('printf %s "${A-unset}"') == "unset"
    async with check("exec.run", "cwd"):
        assert await output("pwd") == "/home/sandbox\n"
        assert await output("pwd", cwd="/tmp") == "/tmp\n"
        assert await output("pwd", cwd="/workspace") == "/workspace\n"
    async with check("exec.run", "large output arrives whole"):
        result = await commands.run(
            "head -c 3000000 /dev/zero | tr '\\0' x; head -c 500000 /dev/zero | tr '\\0' e >&2"
        )
        assert result.stdout == "x" * 3_000_000, len(result.stdout)
        assert result.stderr == "e" * 500_000, len(result.stderr)
    async with check("exec.run", "characters and stray bytes"):
        assert await output("printf 'größe 漢字'") == "größe 漢字"
        assert await output("printf 'a\\377b'") == "a\ufffdb"
    async with check("exec.run", "runs as the user sandbox"):
        expected = "sandbox\n1000\n1000\n/home/sandbox\n"
        assert await output("id -un; id -u; id -g; echo $HOME") == expected
    async with check("exec.run", "many at once"):
        results = await asyncio.gather(*(output(f"sleep 0.5; echo {i}") for i in range(12)))
        assert list(results) == [f"{i}\n" for i in range(12)]
    async with check("exec.run", "without a command"):
        if hasattr(sandbox, "exec"):
            # Since 0.5.2 it is wrapped, and `sh -c ''` is a command.
            assert (await commands.run("")).exit_code == 0
        else:
            async with refused("400.*cmd is required"):
                await commands.run("")
    async with check("Sandbox.commands", "is there under its old name"):
        assert await output("echo same") == "same\n"
    if hasattr(sandbox, "exec"):
        async with check("Sandbox.exec", "is the same thing"):
            assert (await sandbox.exec.run("echo same")).stdout == "same\n"
