"""Every class does its work against a real server with real sandboxes.

One sandbox for what leaves it as it was; others where it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator

import httpx
import pytest
from conftest import eventually

import opencomputer as oc

pytestmark = pytest.mark.anyio
TOKEN = re.compile(r"osb_sealed_[0-9a-f]{32}")
KILLED = (137, -1)
FLOOD = "head -c 20000000 /dev/urandom | base64 -w 4000"
GONE = "sb-00000000000000000000000000"


@pytest.fixture(scope="module")
async def sandbox(anyio_backend: str) -> AsyncIterator[oc.Sandbox]:
    async with await oc.Sandbox.create(
        memory_mb=512, envs={"COLOUR": "blue"}, metadata={"py": "b"}
    ) as one:
        yield one


async def test_project() -> None:
    name = f"sdk-{secrets.token_hex(8)}"
    project = await oc.Project.create(name, cpu_count=2, egress_allowlist=["a.test"])
    assert (project["name"], project["cpuCount"], project["memoryMB"]) == (name, 2, 1024)
    assert project["egressAllowlist"] == ["a.test"]
    with pytest.raises(oc.ConflictError):
        await oc.Project.create(name)
    id = project["id"]
    assert await oc.Project.get(id) == project
    assert id in [one["id"] for one in await oc.Project.list()]
    changed = await oc.Project.update(id, memory_mb=512, egress_allowlist=[])
    assert (changed["cpuCount"], changed["memoryMB"]) == (2, 512)
    assert changed["egressAllowlist"] == []
    await oc.Project.set_secret(id, "B", "value", allowed_hosts=["b.test"])
    await oc.Project.set_secret(id, "A", "value")
    assert await oc.Project.list_secrets(id) == ["A", "B"]
    async with await oc.Sandbox.create(project=name) as fork:
        info = await fork.get_info()
        assert (info["cpuCount"], info["memoryMB"]) == (2, 512)
        hosts = await fork.get_allowed_hosts()
        assert (hosts["project"], hosts["perSecretAllowedHosts"]) == (name, {"B": ["b.test"]})
    await oc.Project.delete_secret(id, "A")
    await oc.Project.delete_secret(id, "A")
    await oc.Project.delete(id)
    with pytest.raises(oc.NotFoundError, match="Failed to get project: 404") as caught:
        await oc.Project.get(id)
    assert caught.value.reason == "project not found"
    assert caught.value.request_id


async def test_secret_store() -> None:
    name = f"sdk-{secrets.token_hex(8)}"
    store = await oc.SecretStore.create(name, egress_allowlist=["a.test"])
    with pytest.raises(oc.ConflictError):
        await oc.SecretStore.create(name)
    id = store["id"]
    assert await oc.SecretStore.get(id) == store
    assert id in [one["id"] for one in await oc.SecretStore.list()]
    changed = await oc.SecretStore.update(id, name=f"{name}-2", egress_allowlist=[])
    assert (changed["name"], changed["egressAllowlist"]) == (f"{name}-2", [])
    await oc.SecretStore.set_secret(id, "KEY", "value", allowed_hosts=["a.test"])
    (entry,) = await oc.SecretStore.list_secrets(id)
    assert (entry["name"], entry["storeId"], entry["allowedHosts"]) == ("KEY", id, ["a.test"])
    with pytest.raises(oc.BadRequestError) as caught:
        await oc.SecretStore.set_secret(id, "no name", "a-secret-value")
    assert "a-secret-value" not in str(caught.value)
    await oc.SecretStore.delete_secret(id, "KEY")
    await oc.SecretStore.delete_secret(id, "KEY")
    await oc.SecretStore.delete(id)
    with pytest.raises(oc.NotFoundError):
        await oc.SecretStore.get(id)


async def test_a_secret_is_a_token_inside_and_the_value_at_its_host() -> None:
    value, nonce = f"real-{secrets.token_hex(8)}", secrets.token_hex(8)
    host = os.environ["OC_STANDIN_HOSTS"].split(",")[0]
    store = await oc.SecretStore.create(f"sdk-{nonce}")
    await oc.SecretStore.set_secret(store["id"], "API_KEY", value, allowed_hosts=[host])
    async with await oc.Sandbox.create(secret_store=store["name"]) as inside:
        assert TOKEN.fullmatch((await inside.exec.run("printenv API_KEY")).stdout.strip())
        url = f"https://{host}:{os.environ['OC_STANDIN_PORT']}/?nonce={nonce}"
        command = f'curl -sS --max-time 20 {url} -H "x-api-key: $API_KEY"'
        assert value not in (await inside.exec.run(command)).stdout
    async with httpx.AsyncClient() as observer:
        seen = await observer.get(f"{os.environ['OC_OBSERVER_URL']}/seen/{nonce}")
    assert seen.json()["headers"]["x-api-key"] == value
    await oc.SecretStore.delete(store["id"])


async def test_what_a_sandbox_tells_of_itself(sandbox: oc.Sandbox) -> None:
    again = await oc.Sandbox.connect(sandbox.sandbox_id)
    assert (again.sandbox_id, again.status, again.end_at) == (sandbox.id, "running", None)
    assert await again.is_running()
    info = await again.get_info()
    assert (info["memoryMB"], info["metadata"]) == (512, {"py": "b"})
    listed = await oc.Sandbox.list(metadata={"py": "b"}, limit=10)
    assert [one["sandboxID"] for one in listed] == [sandbox.id]
    await again.close()
    with pytest.raises(oc.NotFoundError):
        await oc.Sandbox.connect(GONE)
    with pytest.raises(oc.AuthenticationError, match="invalid API key"):
        await oc.Sandbox.connect(sandbox.id, api_key="osb_" + "0" * 64)


async def test_sleep_wake_timeout_restarts() -> None:
    async with await oc.Sandbox.create(memory_mb=256, timeout=600) as one:
        await one.files.write("kept", "on disk")
        await one.hibernate()
        assert not await one.is_running()
        assert one.status == "hibernated"
        await one.wake(timeout=900)
        assert (await one.get_info())["timeout"] == 900
        await one.set_timeout(0)
        assert (await one.get_info())["timeout"] == 0
        with pytest.raises(oc.BadRequestError):
            await one.set_timeout(-1)
        await one.reboot()
        await one.power_cycle()
        assert await one.files.read("kept") == "on disk"
        await one.hibernate()
        # Any use wakes it.
        assert (await one.exec.run("cat kept")).stdout == "on disk"


async def test_scaling_and_its_lock(sandbox: oc.Sandbox) -> None:
    scaled = await sandbox.scale(1024)
    assert (scaled["sandboxID"], scaled["memoryMB"]) == (sandbox.id, 1024)
    on = await sandbox.set_autoscale(True, min_memory_mb=1024, max_memory_mb=4096)
    assert (on["enabled"], on["minMemoryMB"], on["maxMemoryMB"]) == (True, 1024, 4096)
    assert (await sandbox.get_autoscale())["enabled"]
    await sandbox.set_scaling_lock(True)
    assert await sandbox.get_scaling_lock() == {"sandboxID": sandbox.id, "locked": True}
    with pytest.raises(oc.ScalingLockedError) as caught:
        await sandbox.scale(4096)
    assert caught.value.code == "scaling_locked"
    await sandbox.set_scaling_lock(False)


async def test_a_killed_sandbox_says_so() -> None:
    one = await oc.Sandbox.create(memory_mb=256)
    await one.kill()
    await one.kill()
    assert not await one.is_running()
    with pytest.raises(oc.GoneError):
        await one.exec.run("true")
    with pytest.raises(oc.GoneError):
        await one.pty.create()
    await one.close()


async def test_run(sandbox: oc.Sandbox) -> None:
    run = sandbox.exec.run
    assert await run("echo out; echo err >&2; exit 3") == oc.ProcessResult(3, "out\n", "err\n")
    env = {"A": "1 2", "B": "ü$x'\""}
    assert (await run('printf %s "$A|$B|$COLOUR"', env=env)).stdout == "1 2|ü$x'\"|blue"
    assert (await run("pwd", cwd="/tmp")).stdout == "/tmp\n"
    assert (await run("echo early; sleep 1.5; echo late")).stdout == "early\nlate\n"
    killed = await run("echo begun; sleep 300", timeout=1)
    assert (killed.exit_code, killed.stdout) == (-1, "begun\n")
    assert killed.stderr.endswith("Process timed out")
    big = await run("head -c 3000000 /dev/zero | tr '\\0' x")
    assert big.stdout == "x" * 3_000_000, len(big.stdout)
    results = await asyncio.gather(*(run(f"sleep 0.3; echo {i}") for i in range(8)))
    assert [one.stdout for one in results] == [f"{i}\n" for i in range(8)]


async def test_start_streams_input_exit_kill_list(sandbox: oc.Sandbox) -> None:
    out, err, told = bytearray(), bytearray(), list[object]()

    async def on_stderr(data: bytes) -> None:
        err.extend(data)

    session = await sandbox.exec.start(
        "read a; echo got $a; cat; echo err >&2; exit 7",
        on_stdout=out.extend,
        on_stderr=on_stderr,
        on_exit=told.append,
        on_scrollback_end=lambda: told.append("replayed"),
    )
    await session.send_stdin("one\n")
    await session.send_stdin(b"rest")
    await session.close_stdin()
    assert await session.done == 7
    assert (bytes(out), bytes(err), told) == (b"got one\nrest", b"err\n", ["replayed", 7])
    direct = await sandbox.exec.background("printf", args=["%s|", "$HOME"])
    assert await direct.done == 0
    async with await sandbox.exec.start("sleep", args=["300"], cwd="/tmp") as running:
        listed = await sandbox.exec.list()
        info = next(one for one in listed if one.session_id == running.session_id)
        assert (info.command, info.running, info.attached_clients) == ("sleep", True, 1)
        await running.kill(15)
        assert await running.done in (143, -1)
    for call in (sandbox.exec.kill("00000000"), sandbox.exec.attach("00000000")):
        with pytest.raises(oc.NotFoundError):
            await call
    timed = await sandbox.exec.start("sleep 300", timeout=1)
    assert await timed.done == -1


async def test_a_callback_that_fails_is_told(sandbox: oc.Sandbox) -> None:
    def broken(_: bytes) -> None:
        raise LookupError("of the callback")

    session = await sandbox.exec.start("echo out; sleep 300", on_stdout=broken)
    with pytest.raises(LookupError, match="of the callback"):
        await session.done
    await session.kill()


async def test_attach_shows_what_was_there_then_what_comes(sandbox: oc.Sandbox) -> None:
    session = await sandbox.exec.start("echo before; read x; echo after $x")
    await session.close()
    assert session.disconnected
    assert await session.done == -1
    with pytest.raises(oc.ApiConnectionError):
        await session.send_stdin("late")
    out = bytearray()
    again = await sandbox.exec.attach(session.session_id, on_stdout=out.extend)
    await eventually("the replay", lambda: bytes(out) == b"before\n")
    await again.send_stdin("x\n")
    assert await again.done == 0
    assert bytes(out) == b"before\nafter x\n"


async def test_stream_is_in_order_held_back_and_killed_when_left(sandbox: oc.Sandbox) -> None:
    pieces = [piece async for piece in sandbox.exec.stream("echo a; echo b >&2; exit 4")]
    assert sorted(piece.type for piece in pieces) == ["exit", "stderr", "stdout"]
    assert pieces[-1] == oc.ExecOutput("exit", exit_code=4)
    direct = [piece async for piece in sandbox.exec.stream("printf", args=["%s|", "$HOME", "a b"])]
    assert direct[0].data == b"$HOME|a b|"
    digest, size = hashlib.sha256(), 0
    # Much more than a server keeps for who comes late.
    command = f"{FLOOD} | tee /tmp/all; sha256sum < /tmp/all > /tmp/sum"
    async for piece in sandbox.exec.stream(command):
        digest.update(piece.data)
        size += len(piece.data)
        if size < 400_000:
            await asyncio.sleep(0.02)
    sum = (await sandbox.exec.run("cut -d' ' -f1 /tmp/sum")).stdout.strip()
    assert digest.hexdigest() == sum, size
    stream = sandbox.exec.stream("echo begun; exec sleep 301")
    async with contextlib.aclosing(stream) as left:
        async for piece in left:
            if piece.type == "stdout":
                break
    listed = await sandbox.exec.list()
    info = next(one for one in listed if "echo begun; exec sleep 301" in one.args)
    assert not info.running
    assert info.exit_code in KILLED


async def test_one_shell_for_many_commands(sandbox: oc.Sandbox) -> None:
    shell = await sandbox.exec.shell(cwd="/tmp", env={"FIRST": "1"})
    assert (await shell.run('echo "$PWD $FIRST"')).stdout == "/tmp 1\n"
    await shell.run("cd /; export SECOND=2; f() { echo called $1; } # a comment")
    assert (await shell.run("pwd; echo $SECOND; f x")).stdout == "/\n2\ncalled x\n"
    live = bytearray()
    result = await shell.run("echo o; echo e >&2; false", on_stdout=live.extend)
    assert result == oc.ProcessResult(1, "o\n", "e\n")
    assert bytes(live) == b"o\n"
    text = await shell.run("cat <<END\na __OC_ line\nEND\nprintf '\\n__OC_x_DONE__\\n'")
    assert text.stdout == "a __OC_ line\n\n__OC_x_DONE__\n"
    assert await shell.run("") == oc.ProcessResult(0, "", "")
    busy = asyncio.ensure_future(shell.run("sleep 0.3; echo slow"))
    await asyncio.sleep(0)
    with pytest.raises(oc.ShellBusyError):
        await shell.run("true")
    assert (await busy).stdout == "slow\n"
    again = await sandbox.exec.reattach_shell(shell.session_id)
    assert (await again.run("echo $SECOND")).stdout == "2\n"
    with pytest.raises(oc.ShellClosedError):
        await shell.run("exit 5")
    await eventually("the other one sees it", lambda: again._closed)
    with pytest.raises(oc.ShellClosedError, match="bash exited with code 5"):
        await again.run("true")
    await shell.close()
    await again.close()


async def test_files(sandbox: oc.Sandbox) -> None:
    files = sandbox.files
    await files.write("notes/größe ?&#%.txt", "größe\n")
    assert await files.read("/home/sandbox/notes/größe ?&#%.txt") == "größe\n"
    data = os.urandom(5_000_000)
    await files.write("/tmp/bytes", data)
    assert await files.read_bytes("/tmp/bytes") == data

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 999_999):
            yield data[start : start + 999_999]

    await files.write("/tmp/streamed", parts())
    digest = hashlib.sha256()
    async for piece in files.read_stream("/tmp/streamed"):
        digest.update(piece)
    assert digest.digest() == hashlib.sha256(data).digest()
    await files.make_dir("/tmp/a/b")
    await files.make_dir("/tmp/a/b")
    await files.write("/tmp/a/empty", b"")
    listed = await files.list("/tmp/a")
    assert [(one.name, one.is_dir, one.path) for one in listed] == [
        ("b", True, "/tmp/a/b"),
        ("empty", False, "/tmp/a/empty"),
    ]
    assert listed[1].size == 0
    assert "tmp" in [one.name for one in await files.list()]
    there = [await files.exists(one) for one in ("/tmp/a", "/tmp/a/empty", "/tmp/no")]
    assert there == [True, True, False]
    await files.remove("/tmp/a")
    await files.remove("/tmp/a")
    assert not await files.exists("/tmp/a")
    with pytest.raises(oc.NotFoundError, match="Failed to read /no/such: 404"):
        await files.read("/no/such")
    with pytest.raises(oc.BadRequestError):
        await files.read_bytes("/tmp")


async def test_signed_urls_work_for_whoever_has_them(sandbox: oc.Sandbox) -> None:
    await sandbox.files.write("/tmp/signed ü", "signed")
    async with httpx.AsyncClient() as anybody:
        download = await sandbox.download_url("/tmp/signed ü", expires_in=60)
        assert (await anybody.get(download)).text == "signed"
        upload = await sandbox.upload_url("/tmp/uploaded")
        assert (await anybody.put(upload, content=b"up")).status_code == 204
    assert await sandbox.files.read("/tmp/uploaded") == "up"
    with pytest.raises(oc.BadRequestError):
        await sandbox.download_url("/x", expires_in=86_401)


async def test_pty(sandbox: oc.Sandbox) -> None:
    seen = bytearray()
    pty = await sandbox.pty.create(91, 17, seen.extend)
    await pty.send("stty size\r")
    await eventually("its size", lambda: b"17 91\r\n" in seen)
    await pty.resize(100, 40)
    await pty.send(b"stty size\r")
    await eventually("its new size", lambda: b"40 100\r\n" in seen)
    await pty.close()
    again = await sandbox.pty.attach(pty.session_id)
    await again.send("exit\r")
    assert b"40 100\r\n" in b"".join([piece async for piece in again])
    with pytest.raises(oc.ApiConnectionError):
        await again.recv()
    await again.wait()

    # What a callback does: it may also end the session.
    async def leave(_: bytes) -> None:
        await closing.close()

    closing = await sandbox.pty.create(on_output=leave)
    await asyncio.wait_for(closing.wait(), 60)
    flooded = await sandbox.pty.create()
    await flooded.send("seq 400000; exit\r")
    await asyncio.wait_for(flooded.wait(), 60)
    kept = b"".join([piece async for piece in flooded])
    assert 500_000 < len(kept) <= 1024 * 1024
    assert b"400000\r\n" in kept
    async with await sandbox.pty.create() as killed:
        await killed.kill()
        await killed.kill()
        with pytest.raises(oc.NotFoundError):
            await sandbox.pty.attach(killed.session_id)
    with pytest.raises(oc.BadRequestError):
        await sandbox.pty.create(cols=70_000)


async def test_checkpoints_forks_and_patches() -> None:
    async with await oc.Sandbox.create(memory_mb=256, envs={"COLOUR": "blue"}) as base:
        await base.files.write("file", "one")
        made = await base.create_checkpoint("first", "disk_only")
        id = made["id"]
        assert (made["name"], made["sandboxId"]) == ("first", base.id)
        with pytest.raises(oc.ConflictError):
            await base.create_checkpoint("first")
        assert (await base.wait_for_checkpoint(id))["status"] == "ready"
        with pytest.raises(oc.OpenComputerError, match="it is not there"):
            await base.wait_for_checkpoint("no-such")
        await base.files.write("file", "two")
        script = "echo patched > /etc/patched"
        patch = (await oc.Sandbox.create_checkpoint_patch(id, script, "d"))["patch"]
        patches = await oc.Sandbox.list_checkpoint_patches(id)
        assert [one["id"] for one in patches] == [patch["id"]]
        async with await oc.Sandbox.create_from_checkpoint(id, envs={"MORE": "x"}) as fork:
            assert await fork.files.read("file") == "one"
            result = await fork.exec.run("echo $COLOUR $MORE; cat /etc/patched")
            assert result.stdout == "blue x\npatched\n"
        await oc.Sandbox.delete_checkpoint_patch(id, patch["id"])
        await oc.Sandbox.delete_checkpoint_patch(id, patch["id"])
        await base.restore_checkpoint(id)
        assert await base.files.read("file") == "one"
        await base.delete_checkpoint(id)
        await base.delete_checkpoint(id)
        assert await base.list_checkpoints() == []
        with pytest.raises(oc.NotFoundError):
            await oc.Sandbox.create_from_checkpoint(id)


async def test_tags(sandbox: oc.Sandbox) -> None:
    async with oc.Tags() as tags:
        assert (await tags.set(sandbox.id, {"team": "a"}))[0] == {"team": "a"}
        assert (await tags.get(sandbox.id))[0] == {"team": "a"}
        assert "team" in [one.key for one in await tags.list_keys()]
        assert (await tags.set(sandbox.id, {}))[0] == {}


async def test_logs_are_history_then_what_comes(sandbox: oc.Sandbox) -> None:
    await sandbox.exec.run("echo said-before")

    async def there() -> bool:
        lines = [one["line"] async for one in sandbox.logs(tail=False, q="said-")]
        return "said-before" in lines

    # What is printed gets into the log a little later.
    await eventually("the line is in the log", there)

    async def follow() -> str:
        async for one in sandbox.logs(source=("exec_stdout",)):
            if one["line"] == "said-after":
                return one["line"]
        return ""

    following = asyncio.ensure_future(follow())
    await sandbox.exec.run("echo said-after")
    assert await asyncio.wait_for(following, 60) == "said-after"
