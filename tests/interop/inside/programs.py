"""What runs inside the sandbox: each function is a user's program, which knows only its token.

    programs.py NAME NONCE

`API` is the origin of the host, `INTEROP_KEY` the token. A program prints what came back; the
driver outside compares that with what the host saw.
"""

import asyncio
import os
import socket
import ssl
import sys
import urllib.request
from urllib.parse import urlsplit

API = os.environ["API"]
TOKEN = os.environ["INTEROP_KEY"]
HEADERS = {"x-api-key": TOKEN, "authorization": f"Bearer {TOKEN}"}
TARGET = urlsplit(API).netloc
IO_SEC_MAX = 20


def url(path: str, nonce: str, scheme: str = "https") -> str:
    return f"{scheme}://{TARGET}/{path}?nonce={nonce}"


def urllib_(nonce: str) -> None:
    request = urllib.request.Request(url("echo", nonce), b"body " + TOKEN.encode(), HEADERS)
    print(urllib.request.urlopen(request, timeout=IO_SEC_MAX).read().decode())


def requests_(nonce: str) -> None:
    import requests

    reply = requests.post(url("echo", nonce), json={"key": TOKEN}, headers=HEADERS)
    print(reply.raise_for_status() or reply.text)


def httpx_h2(nonce: str) -> None:
    import httpx

    with httpx.Client(http2=True, timeout=IO_SEC_MAX) as client:
        reply = client.post(url("echo", nonce), json={"key": TOKEN}, headers=HEADERS)
        assert reply.http_version == "HTTP/2", reply.http_version
        print(reply.text)


def aiohttp_(nonce: str) -> None:
    import aiohttp

    async def call() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url("echo", nonce), data={"key": TOKEN}, headers=HEADERS) as reply,
        ):
            print(await reply.text())

    asyncio.run(call())


def websockets_(nonce: str) -> None:
    import websockets

    async def call() -> None:
        # It offers permessage-deflate by itself.
        where = url("socket", nonce, "wss")
        async with websockets.connect(where, additional_headers=HEADERS) as peer:
            await peer.send(f"text {TOKEN}")
            print(await peer.recv())
            await peer.send([f"in two {TOKEN[:20]}", f"{TOKEN[20:]} frames"])
            print(await peer.recv())
            await peer.send(b"binary " + TOKEN.encode())
            print((await peer.recv()).decode())

    asyncio.run(call())


def sse(nonce: str) -> None:
    import httpx

    with httpx.stream("GET", url("events", nonce), headers=HEADERS, timeout=IO_SEC_MAX) as reply:
        lines = list(reply.iter_lines())
    assert lines.count(f"data: key {TOKEN}") == 3 and "data: end" in lines, lines
    print("\n".join(lines))


def grpc_(nonce: str, streaming: bool) -> None:
    import grpc

    # A message with one string in field 1, as protoc would write it.
    def message(text: str) -> bytes:
        assert len(text) < 128, "its length is one byte"
        return b"\x0a" + bytes([len(text)]) + text.encode()

    roots = open(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"), "rb").read()
    metadata = (("x-api-key", TOKEN), ("x-nonce", nonce))
    texts = [f"message {number} {TOKEN}" for number in range(3 if streaming else 1)]
    sent = [message(text) for text in texts]
    with grpc.secure_channel(TARGET, grpc.ssl_channel_credentials(roots)) as channel:
        if streaming:
            call = channel.stream_stream("/interop.Echo/Stream")(
                iter(sent), metadata=metadata, timeout=IO_SEC_MAX
            )
            got = list(call)
        else:
            reply, call = channel.unary_unary("/interop.Echo/Unary").with_call(
                sent[0], metadata=metadata, timeout=IO_SEC_MAX
            )
            got = [reply]
        assert dict(call.initial_metadata())["x-seen"] == TOKEN, "metadata came back as sent"
        assert dict(call.trailing_metadata())["x-seen-last"] == TOKEN, "trailers too"
    assert got == sent, f"messages came back as sent, not {got}"
    print(f"{len(got)} messages and metadata: {TOKEN}")


def raw_tls(host: str, server_name: str | None) -> ssl.SSLSocket:
    """No proxy variable is read: an address by name, a socket, and every check of X.509 on."""
    context = ssl.create_default_context()
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    port = urlsplit(API).port
    plain = socket.create_connection((host, port), IO_SEC_MAX)
    return context.wrap_socket(plain, server_hostname=server_name or host)


def say(peer: ssl.SSLSocket, nonce: str, host: str) -> str:
    peer.sendall(
        f"GET /echo?nonce={nonce} HTTP/1.1\r\nhost: {host}:{urlsplit(API).port}\r\n"
        f"x-api-key: {TOKEN}\r\nconnection: close\r\n\r\n".encode()
    )
    parts = []
    while part := peer.recv(65536):
        parts.append(part)
    return b"".join(parts).decode()


def strict(nonce: str) -> None:
    host = urlsplit(API).hostname
    with raw_tls(host, None) as peer:
        print(say(peer, nonce, host))


def strict_address(nonce: str) -> None:
    # No policy allows the address: what counts is that the refusal can be read over TLS that a
    # strict client verified for this address.
    address = "203.0.113.7"
    with raw_tls(address, None) as peer:
        names = peer.getpeercert()["subjectAltName"]
        assert names == (("IP Address", address),), names
        print(say(peer, nonce, address))


def greeter(nonce: str) -> None:
    where = os.environ["GREETER_HOST"], int(os.environ["GREETER_PORT"])
    with socket.create_connection(where) as peer:
        peer.settimeout(IO_SEC_MAX)
        lines = peer.makefile("rw", newline="\n")
        greeting = lines.readline()
        assert greeting == "5.7 ready\n", greeting
        lines.write(f"select {nonce} {TOKEN}\n")
        lines.flush()
        print(lines.readline())


PROGRAMS = {
    "urllib": urllib_,
    "requests": requests_,
    "httpx-h2": httpx_h2,
    "aiohttp": aiohttp_,
    "websockets": websockets_,
    "sse": sse,
    "grpc-unary": lambda nonce: grpc_(nonce, streaming=False),
    "grpc-streaming": lambda nonce: grpc_(nonce, streaming=True),
    "strict": strict,
    "strict-address": strict_address,
    "greeter": greeter,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2])
