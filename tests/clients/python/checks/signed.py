"""Sandbox: download_url, upload_url; used by a program that knows nothing but the URL."""

import httpx
from harness import check, refused

FOLDER = "/home/sandbox/signed"


async def run(sandbox):
    async with check("Sandbox.download_url", "opens the file to whoever has it"):
        path = f"{FOLDER}/a b&c=d?e#f%20ü.txt"
        await sandbox.files.write(path, "signed")
        url = await sandbox.download_url(path)
        assert isinstance(url, str)
        async with httpx.AsyncClient() as anybody:
            reply = await anybody.get(url)
            assert (reply.status_code, reply.content) == (200, b"signed")
            assert (await anybody.put(url, content=b"x")).status_code == 405
            forged = await anybody.get(url[:-1] + ("1" if url[-1] == "0" else "0"))
            assert (forged.status_code, forged.json()["error"]) == (403, "invalid signature")
    async with check("Sandbox.download_url", "at most a day"):
        async with refused("86400"):
            await sandbox.download_url(path, expires_in=86_401)
    async with check("Sandbox.upload_url", "writes the file for whoever has it"):
        path = f"{FOLDER}/new/upload.bin"
        url = await sandbox.upload_url(path, expires_in=60)
        async with httpx.AsyncClient() as anybody:
            reply = await anybody.put(url, content=bytes(range(256)))
            assert (reply.status_code, reply.content) == (204, b"")
        assert await sandbox.files.read_bytes(path) == bytes(range(256))
