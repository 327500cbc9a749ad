"""files: read, read_bytes, write, list, make_dir, remove, exists."""

import hashlib
import os

from harness import check, refused

FOLDER = "/home/sandbox/suite"


async def run(sandbox):
    files = sandbox.files

    async def output(command):
        return (await sandbox.commands.run(command)).stdout

    async with check("files.make_dir", "with parents, and again"):
        await files.make_dir(f"{FOLDER}/a/b")
        await files.make_dir(f"{FOLDER}/a/b")
        assert await output(f"stat -c '%F %U' {FOLDER}/a/b") == "directory sandbox\n"
    async with check("files.make_dir", "a file is in the way"):
        await files.write(f"{FOLDER}/file", "x")
        async with refused("400"):
            await files.make_dir(f"{FOLDER}/file")
    await _writing(files, output)
    await _reading(files, output)
    async with check("files.list", "sorted, hidden ones too, with every field"):
        await output(f"mkdir -p {FOLDER}/list/sub; cd {FOLDER}/list; printf 12345 > b; touch .a")
        entries = await files.list(f"{FOLDER}/list")
        assert [one.name for one in entries] == [".a", "b", "sub"]
        assert [one.is_dir for one in entries] == [False, False, True]
        assert [one.size for one in entries[:2]] == [0, 5]
        assert [one.path for one in entries] == [f"{FOLDER}/list/{one.name}" for one in entries]
    async with check("files.list", "the root by default, empty, missing"):
        assert {"home", "tmp", "usr", "workspace"} <= {one.name for one in await files.list()}
        assert await files.list(f"{FOLDER}/a/b") == []
        async with refused("404"):
            await files.list(f"{FOLDER}/missing")
    async with check("files.exists", "a file, nothing"):
        assert await files.exists(f"{FOLDER}/bytes") is True
        assert await files.exists(f"{FOLDER}/missing") is False
    async with check("files.remove", "a file, a tree, nothing"):
        await files.remove(f"{FOLDER}/bytes")
        assert await files.exists(f"{FOLDER}/bytes") is False
        await files.remove(FOLDER)
        async with refused("404"):
            await files.list(FOLDER)
        await files.remove(FOLDER)
    async with check("Sandbox.files", "is used all along"):
        assert type(sandbox.files) is type(files)


async def _writing(files, output):
    async with check("files.write", "text; parents are made; the sandbox owns it"):
        path = f"{FOLDER}/new/text.txt"
        await files.write(path, "grüße\n")
        shown = await output(f"cat {path}; stat -c '%a %U %G' {path}")
        assert shown == "grüße\n644 sandbox sandbox\n", shown
        assert await output(f"echo more >> {path} && cat {path}") == "grüße\nmore\n"
    async with check("files.write", "replaces what was there"):
        await files.write(f"{FOLDER}/replaced", "a longer text than the next")
        await files.write(f"{FOLDER}/replaced", "short")
        assert await files.read(f"{FOLDER}/replaced") == "short"
        await files.write(f"{FOLDER}/replaced", "")
        assert await files.read(f"{FOLDER}/replaced") == ""
    if "AsyncIterator" in str(files.write.__func__.__annotations__):
        async with check("files.write", "a stream"):

            async def parts():
                for part in (b"one ", b"two ", b"three"):
                    yield part

            await files.write(f"{FOLDER}/stream", parts())
            assert await files.read(f"{FOLDER}/stream") == "one two three"


async def _reading(files, output):
    async with check("files.read", "relative paths start at the home folder"):
        await files.write("relative.txt", "here")
        assert await output("cat /home/sandbox/relative.txt") == "here"
        assert await files.read("relative.txt") == "here"
    async with check("files.read", "odd names"):
        path = f"{FOLDER}/a b&c=d?e#f%20ü.txt"
        await files.write(path, "odd")
        assert await files.read(path) == "odd"
    async with check("files.read", "missing and folders are refused"):
        async with refused("404"):
            await files.read(f"{FOLDER}/missing")
        async with refused("400"):
            await files.read(FOLDER)
    async with check("files.read_bytes", "every byte value"):
        await files.write(f"{FOLDER}/bytes", bytes(range(256)))
        assert await files.read_bytes(f"{FOLDER}/bytes") == bytes(range(256))
    async with check("files.read_bytes", "5 MB there and back"):
        data = os.urandom(5_000_000)
        await files.write(f"{FOLDER}/large", data)
        shown = await output(f"sha256sum < {FOLDER}/large")
        assert shown == f"{hashlib.sha256(data).hexdigest()}  -\n"
        assert await files.read_bytes(f"{FOLDER}/large") == data
