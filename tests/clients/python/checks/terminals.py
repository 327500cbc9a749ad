"""pty.create and its session: send, recv, close."""

import asyncio

from harness import check, eventually, plain, refused


async def run(sandbox):
    async with check("Sandbox.pty", "is there"):
        assert sandbox.pty is not None
    seen = bytearray()

    async def shows(wanted: bytes) -> None:
        await eventually(repr(wanted), 20, lambda: wanted in seen)
        seen.clear()

    async with check("pty.create", "a prompt from before the socket"):
        session = await sandbox.pty.create(cols=91, rows=17, on_output=seen.extend)
        assert session.sandbox_id == sandbox.sandbox_id
        await shows(b"$ ")
        async with check("PtySession.send", "text and bytes"):
            await session.send("stty size\r")
            await shows(b"17 91\r\n")
            await session.send("echo gr\u00fcn\r".encode())
            await shows("\rgr\u00fcn\r\n".encode())
        async with check("PtySession.send", "keys are signals"):
            await session.send("sleep 300\r")
            await shows(b"sleep 300\r\n")
            await asyncio.sleep(0.5)
            await session.send("\x03")
            await shows(b"^C")
            await session.send("echo code=$?\r")
            await shows(b"code=130\r\n")
        async with check("PtySession.close", "leaves the shell alone"):
            await session.close()
            path = f"/sandboxes/{sandbox.sandbox_id}/pty/{session.session_id}"
            status, _ = await plain("POST", f"{path}/resize", {"cols": 80, "rows": 24})
            assert status == 200
            for expected in (204, 404):
                assert (await plain("DELETE", path))[0] == expected
    async with check("PtySession.recv", "bytes, at 80 by 24 unless told otherwise"):
        session = await sandbox.pty.create()
        await session.send("stty size; exit\r")
        came = b""
        while b"24 80\r\n" not in came:
            piece = await asyncio.wait_for(session.recv(), 20)
            assert isinstance(piece, bytes)
            came += piece
        await session.close()
    async with check("pty.create", "a size that no terminal has"):
        async with refused("400"):
            await sandbox.pty.create(cols=70_000)
