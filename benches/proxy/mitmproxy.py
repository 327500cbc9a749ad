"""mitmproxy with the same task: the token becomes the value in the fields and bodies of requests.

Responses are streamed as they come: it is spared the re-seal, and the memory.
"""

import os
import socket

TOKEN = os.environ["BENCH_TOKEN"].encode()
VALUE = os.environ["BENCH_VALUE"].encode()
HOST = os.environ["BENCH_HOST"]


_look_up = socket.getaddrinfo


def _to_loopback(host, *args, **options):
    """The host is on loopback. (A `server_connect` hook would cost a connection for each request.)"""
    return _look_up("127.0.0.1" if host == HOST else host, *args, **options)


socket.getaddrinfo = _to_loopback


def request(flow):
    request = flow.request
    if request.host != HOST:
        return
    fields = request.headers.fields
    if any(TOKEN in value for _, value in fields):
        request.headers.fields = tuple((name, value.replace(TOKEN, VALUE)) for name, value in fields)
    body = request.raw_content
    if body and TOKEN in body:
        request.raw_content = body.replace(TOKEN, VALUE)


def responseheaders(flow):
    flow.response.stream = True
