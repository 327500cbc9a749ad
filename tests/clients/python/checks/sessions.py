"""exec.start, background, attach, list, kill, shell, reattach_shell: REST and the WebSocket."""

import asyncio
import hashlib
from datetime import datetime, timezone

import opencomputer
from harness import Collector, check, eventually, refused

KILLED = (137, -1)


async def run(sandbox):
    if not hasattr(sandbox, "exec"):
        return  # 0.3.0 has no sessions
    if not hasattr(sandbox.exec, "attach"):
        return await _without_socket(sandbox)
    await _starting(sandbox)
    await _attaching(sandbox.exec)
    await _shells(sandbox.exec)


async def _find(exec, session_id):
    return next(one for one in await exec.list() if one.session_id == session_id)


async def _without_socket(sandbox):
    """0.5.2: start gives the session's id and nothing else."""
    exec = sandbox.exec
    async with check("exec.start", "an id; the process runs"):
        session = await exec.start("sleep", args=["300"], cwd="/tmp", env={"A": "1"})
        assert isinstance(session, str) and session
        await _check_listed(sandbox, session, attached=0)
        async with check("exec.kill", "by id, also when it has ended"):
            await exec.kill(session)
            await eventually("it ends", 5, lambda: _has_ended(exec, session))
            await exec.kill(session)
    async with check("exec.start", "a timeout ends it"):
        session = await exec.start("sleep 300", timeout=1)
        await eventually("it ends", 5, lambda: _has_ended(exec, session))
    async with check("exec.kill", "an unknown session"):
        async with refused("404"):
            await exec.kill("00000000")


async def _has_ended(exec, session_id):
    info = await _find(exec, session_id)
    return not info.running and info.exit_code in KILLED


async def _check_listed(sandbox, session_id, attached):
    async with check("exec.list", "has every field"):
        info = await _find(sandbox.exec, session_id)
        assert info.sandbox_id == sandbox.sandbox_id
        assert (info.command, info.args, info.running) == ("sleep", ["300"], True)
        assert (info.exit_code, info.attached_clients) == (None, attached)
        # Nanoseconds are more than older versions of Python read.
        started = datetime.fromisoformat(info.started_at[:19] + "+00:00")
        assert abs((datetime.now(timezone.utc) - started).total_seconds()) < 60


async def _starting(sandbox):
    exec = sandbox.exec
    async with check("exec.start", "both streams, then the exit"):
        got = Collector()
        session = await exec.start("echo out; echo err >&2; exit 7", **got.callbacks())
        assert session.sandbox_id == sandbox.sandbox_id
        async with check("session.done", "is the exit code"):
            assert await session.done == 7
        assert (got.stdout, got.stderr, got.exit, got.replayed) == (b"out\n", b"err\n", 7, True)
    async with check("exec.start", "with args there is no shell"):
        got = Collector()
        args = ["%s|", "$HOME", "a b", "*"]
        session = await exec.start("printf", args=args, **got.callbacks())
        assert await session.done == 0
        assert got.stdout == b"$HOME|a b|*|"
    async with check("exec.start", "env and cwd"):
        got = Collector()
        session = await exec.start('echo "$A $PWD"', env={"A": "1"}, cwd="/tmp", **got.callbacks())
        await session.done
        assert got.stdout == b"1 /tmp\n"
    async with check("exec.start", "a timeout ends it"):
        session = await exec.start("sleep 300", timeout=1)
        assert await session.done == -1
    async with check("session.send_stdin", "text and bytes"):
        got = Collector()
        session = await exec.start("read a; read b; echo got $a and $b", **got.callbacks())
        await session.send_stdin("one\n")
        await session.send_stdin(b"two\n")
        assert await session.done == 0
        assert got.stdout == b"got one and two\n"
    async with check("session.send_stdin", "a megabyte"):
        got = Collector()
        session = await exec.start("head -c 1000000 | sha256sum", **got.callbacks())
        for _ in range(10):
            await session.send_stdin("y" * 100_000)
        assert await session.done == 0
        assert got.stdout.split()[0].decode() == hashlib.sha256(b"y" * 1_000_000).hexdigest()
    async with check("session.kill", "SIGTERM and the default"):
        for signals, code in (((15,), 143), ((), 137)):
            session = await exec.start("sleep 300")
            await session.kill(*signals)
            assert await session.done in (code, -1)
    async with check("exec.background", "is start"):
        session = await exec.background("exit 3")
        assert await session.done == 3
    session = await exec.start("sleep", args=["300"])
    await _check_listed(sandbox, session.session_id, attached=1)
    async with check("exec.kill", "by id, also when it has ended"):
        await exec.kill(session.session_id)
        assert await session.done in KILLED
        await exec.kill(session.session_id)
        assert await _has_ended(exec, session.session_id)
    async with check("exec.kill", "an unknown session"):
        async with refused("404"):
            await exec.kill("00000000")


async def _attaching(exec):
    async with check("exec.attach", "replay, then live, by two clients"):
        first, second = Collector(), Collector()
        command = "echo before; read line; echo after $line"
        session = await exec.start(command, **first.callbacks())
        await eventually("the first line", 5, lambda: first.stdout == b"before\n")
        again = await exec.attach(session.session_id, **second.callbacks())
        await eventually("the replay", 5, lambda: second.replayed)
        assert second.stdout == b"before\n"
        await again.send_stdin("x\n")
        assert (await session.done, await again.done) == (0, 0)
        assert first.stdout == second.stdout == b"before\nafter x\n"
    async with check("exec.attach", "a replay larger than one message may be"):
        session = await exec.start("head -c 1000000 /dev/zero | tr '\\0' z; echo")
        await session.done
        got = Collector()
        again = await exec.attach(session.session_id, **got.callbacks())
        assert await again.done == 0
        assert got.stdout == b"z" * 1_000_000 + b"\n", len(got.stdout)
    async with check("exec.attach", "to one that has ended"):
        session = await exec.start("echo kept; exit 5")
        await session.done
        got = Collector()
        again = await exec.attach(session.session_id, **got.callbacks())
        assert await again.done == 5
        assert (got.stdout, got.exit, got.replayed) == (b"kept\n", 5, True)
    async with check("exec.attach", "to an unknown one"):
        async with refused("404"):
            await exec.attach("00000000")
    async with check("session.close", "leaves the process alone"):
        session = await exec.start("sleep 1; echo survived")
        await session.close()
        got = Collector()
        again = await exec.attach(session.session_id, **got.callbacks())
        assert await again.done == 0
        assert got.stdout == b"survived\n"
    async with check("exec.start", "max_run_after_disconnect ends it"):
        session = await exec.start("sleep 300", max_run_after_disconnect=1)
        await session.close()
        await eventually("it is killed", 10, lambda: _has_ended(exec, session.session_id))


async def _shells(exec):
    shell = None
    async with check("exec.shell", "opens with cwd and env"):
        shell = await exec.shell(cwd="/tmp", env={"FIRST": "1"})
        assert (await shell.run('echo "$PWD $FIRST"')).stdout == "/tmp 1\n"
    if shell is None:
        return
    async with check("shell.run", "keeps folder, variables and functions"):
        await shell.run("cd /workspace; export SECOND=2; f() { echo called $1; }")
        result = await shell.run("pwd; echo $SECOND; f x")
        assert result.stdout == "/workspace\n2\ncalled x\n"
    async with check("shell.run", "exit code and both streams"):
        got = Collector()
        result = await shell.run("echo o; echo e >&2; false", **got.streams())
        assert (result.exit_code, result.stdout, result.stderr) == (1, "o\n", "e\n")
        assert (got.stdout, got.stderr) == (b"o\n", b"e\n")
    async with check("shell.run", "one at a time"):
        running = asyncio.ensure_future(shell.run("sleep 0.5; echo slow"))
        await asyncio.sleep(0)
        async with refused("ShellBusyError"):
            await shell.run("true")
        assert (await running).stdout == "slow\n"
    async with check("exec.reattach_shell", "finds the shell as it was left"):
        again = await exec.reattach_shell(shell._session.session_id)
        # Output that comes before the end of the replay is dropped: wait for that.
        await asyncio.sleep(0.3)
        assert (await again.run("echo $SECOND")).stdout == "2\n"
    async with check("shell.close", "ends bash"):
        session_id = shell._session.session_id
        await shell.close()
        async with refused(opencomputer.ShellClosedError.__name__):
            await shell.run("true")
        assert not (await _find(exec, session_id)).running
