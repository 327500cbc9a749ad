"""The programs, what each does, and what must be true of it.

A script runs in `sh` inside the sandbox with its nonce as `$1`; in it stand the token as
`$INTEROP_KEY`, the host as `$API`.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Callable

from .upstream import VALUE

UPLOAD_BYTES = 20 * 1024 * 1024
CURL = 'curl -sS --fail-with-body -H "x-api-key: $INTEROP_KEY"'
PY = "venv/bin/python programs.py"
VENV = "[ -x venv/bin/python ] || /usr/bin/python3 -m venv venv && "
SSH = (
    "ssh -p $SSH_PORT -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
)


@dataclass
class Run:
    """What came of one program."""

    token: str
    output: str
    seen: list[dict]

    def sealed(self, places: int = 1) -> None:
        """The host saw the value so often and never the token; the program only its token."""
        arrived = json.dumps(self.seen)
        assert arrived.count(VALUE) >= places, f"not {places} values arrived: {arrived}"
        assert self.token not in arrived, f"the token left: {arrived}"
        assert self.token in self.output, f"no token came back: {self.output}"


def sealed(places: int = 1) -> Callable[[Run], None]:
    return lambda run: run.sealed(places)


def spoke(version: str, places: int = 1) -> Callable[[Run], None]:
    """As `sealed`, by this version of HTTP as the program tells it."""

    def check(run: Run) -> None:
        run.sealed(places)
        assert f"HTTP/{version}" in run.output, run.output

    return check


def uploaded(run: Run) -> None:
    # The value is longer or shorter than the token: the length was repaired or made chunks.
    expected = b"x" * UPLOAD_BYTES + VALUE.encode() + b"x" * UPLOAD_BYTES
    [request] = run.seen
    assert request["body"]["bytes"] == len(expected), request
    assert request["body"]["sha256"] == hashlib.sha256(expected).hexdigest(), "other bytes arrived"


def authorized(run: Run) -> None:
    """A credential as each of the program's requests that had one: the value, inside its base64."""
    words = [request.get("password") or request.get("authorization") for request in run.seen]
    assert any(word and word.endswith(VALUE) for word in words), run.seen
    assert run.token not in json.dumps(run.seen), run.seen


def opaque(run: Run) -> None:
    """Relayed as it is: a connection that is no HTTP never carries a value."""
    assert run.seen and VALUE not in json.dumps(run.seen), run.seen


def relayed(run: Run) -> None:
    opaque(run)
    assert run.token in json.dumps(run.seen), "the token passes inert"
    assert "row select" in run.output, run.output


def unseen(run: Run) -> None:
    """A host with a secret gets nothing that can't be read: a token may be in it."""
    assert not run.seen, f"it arrived: {run.seen}"


def readable(run: Run) -> None:
    assert "HTTP/1.1 403" in run.output, run.output
    assert not run.seen, "a refused request arrived"


@dataclass
class Check:
    program: str
    what: str
    script: str
    holds: Callable[[Run], None]
    # A command that succeeds inside where the program is installed, and the reason when not.
    needs: str = "true"
    reason: str = ""
    # Whether even CI may be without it.
    optional: bool = False
    # The name it is recorded under, when the program can't choose one.
    nonce: str = ""


def curl_checks() -> list[Check]:
    body = """-d "{\\"key\\":\\"$INTEROP_KEY\\"}" -w '\\nHTTP/%{http_version}'"""
    upload = (
        f'{{ head -c {UPLOAD_BYTES} /dev/zero | tr "\\0" x; printf %s "$INTEROP_KEY"; '
        f'head -c {UPLOAD_BYTES} /dev/zero | tr "\\0" x; }} >big && '
        f'{CURL} -H "expect: 100-continue" -T big "$API/echo?nonce=$1"'
    )
    checks = [
        Check("curl", f"--http{v}", f'{CURL} --http{v} {body} "$API/echo?nonce=$1"', spoke(v, 2))
        for v in ("1.1", "2")
    ]
    checks.append(Check("curl", "40 MiB up", upload, uploaded))
    for coding in ("gzip", "deflate", "br", "zstd"):
        feature = {"br": "brotli", "zstd": "zstd"}.get(coding, "libz")
        checks.append(
            Check(
                "curl",
                f"--compressed, {coding}",
                f'{CURL} --compressed "$API/coded?coding={coding}&nonce=$1"',
                sealed(),
                f"curl -V | grep -qi {feature}",
                f"this curl knows no {feature}",
                optional=True,
            )
        )
    return checks


def python_checks() -> list[Check]:
    index = (
        "pip install -q --disable-pip-version-check "
        '--index-url "https://user:$INTEROP_KEY@$TARGET/simple/"'
    )
    names = "requests 'httpx[http2]' aiohttp websockets grpcio"
    rows = [
        ("urllib", "POST", 3),
        ("requests", "POST", 3),
        ("httpx-h2", "POST, HTTP/2", 3),
        ("aiohttp", "form", 3),
        ("websockets", "text, fragments, binary", 4),
        ("sse", "Server-Sent Events", 1),
        ("grpc-unary", "metadata, message, trailers", 2),
        ("grpc-streaming", "metadata, messages, trailers", 4),
        ("strict", "VERIFY_X509_STRICT, raw TLS", 1),
    ]
    return [
        Check(
            "pip", "install from a private index", f"{VENV} venv/bin/{index} {names}", authorized,
            nonce="pip",
        ),
        *(Check(f"python {name}", what, f'{PY} {name} "$1"', sealed(n)) for name, what, n in rows),
        Check("python strict", "leaf of an address", f'{PY} strict-address "$1"', readable),
    ]


def node_checks() -> list[Check]:
    npm = (
        'echo "//$TARGET/npm/:_authToken=\\${INTEROP_KEY}" >.npmrc && '
        "npm install --no-audit --no-fund --loglevel=error "
        '--registry "$API/npm/" ws undici && ls node_modules/ws/package.json'
    )
    rows = [
        ("fetch", "POST", 3),
        ("https", "POST", 3),
        ("http2", "POST, HTTP/2", 3),
        ("undici", "POST", 3),
        ("undici-h2", "POST, HTTP/2", 3),
        ("ws", "text, fragments, binary", 4),
    ]
    return [
        Check("npm", "install from a private registry", npm, authorized, nonce="npm"),
        *(
            Check(f"node {name}", what, f'node programs.mjs {name} "$1"', sealed(n))
            for name, what, n in rows
        ),
    ]


def other_checks() -> list[Check]:
    clone = (
        'git clone -q "https://user:$INTEROP_KEY@$TARGET/git/repo.git" by-https && '
        "cat by-https/README"
    )
    by_ssh = (
        f'GIT_SSH_COMMAND="{SSH}" git clone -q "ssh://git@$SSH_HOST/repo.git" $1 && cat $1/README'
    )
    request = (
        'printf "GET /echo?nonce=%s HTTP/1.1\\r\\nHost: $TARGET\\r\\nx-api-key: $INTEROP_KEY\\r\\n'
        'Connection: close\\r\\n\\r\\n" "$1"'
    )
    s_client = (
        f"({request}; sleep 2) | env -i PATH=$PATH openssl s_client -quiet -verify_return_error "
        "-connect $TARGET -servername ${TARGET%:*}"
    )
    greet = "GREETER_HOST=open.interop.test /usr/bin/python3 programs.py greeter $1"
    cargo = (
        "CARGO_HOME=$PWD/cargo-home CARGO_REGISTRIES_INTEROP_INDEX=sparse+$API/cargo/ "
        "CARGO_REGISTRIES_INTEROP_TOKEN=$INTEROP_KEY ./cargo owner --list --registry interop some"
    )
    return [
        Check("git", "clone over https", clone, authorized, nonce="git-https"),
        Check(
            "git", "clone over ssh", f"SSH_HOST=open.interop.test; {by_ssh}", opaque,
            "ssh -V", "no ssh", nonce="ssh",
        ),
        Check(
            "git", "ssh to a host with a secret: refused",
            f"SSH_HOST=api.interop.test; ! {{ {by_ssh}; }}", unseen,
            "ssh -V", "no ssh", nonce="ssh",
        ),
        Check("server speaks first", "greeting, then a query", greet, relayed, nonce="greeter"),
        Check("openssl s_client", "no variable at all", s_client, sealed()),
        Check(
            "java", "its own client and trust", 'java Call.java "$1"', sealed(2),
            "java --list-modules | grep -q jdk.compiler", "no JDK", optional=True,
        ),
        Check("cargo", "owner --list, private registry", cargo, sealed(), nonce="cargo"),
        Check(
            "go", "net/http", 'go run call.go "$1"', sealed(),
            "go version", "Debian's golang-go is 250 MB", optional=True,
        ),
    ]


def all_checks() -> list[Check]:
    return [*curl_checks(), *python_checks(), *node_checks(), *other_checks()]
