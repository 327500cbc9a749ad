"""An HTTPS API on loopback that stands in for the ones sandboxes call.

It answers every request with what it was sent, so that a secret comes back the way it went, and
remembers requests by the `nonce` in their query. A second, plain HTTP port on loopback tells the
suites what really arrived: they run outside the sandbox and may know the real values.
"""

import http.server
import json
import ssl
import subprocess
import threading
import urllib.parse
from collections import OrderedDict
from pathlib import Path

# The last one is on no allowlist; its name is pinned only so that a leak would arrive somewhere.
HOSTS = ("api.example.test", "other.example.test", "blocked.example.test")
BODY_BYTES_MAX = 16 * 1024 * 1024
RECORDS_MAX = 1000
CONNECTION_SEC_MAX = 30


def make_certificates(folder: Path, hosts: tuple[str, ...] = HOSTS) -> None:
    """A root (`ca.pem`) and a certificate for the stand-in's names (`leaf.pem`, `leaf.key`)."""

    def openssl(*args: str) -> None:
        done = subprocess.run(["openssl", *args], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"openssl {args[0]} failed: {done.stderr.strip()}")

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(
        "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
        "-subj", "/CN=stand-in root", "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign",
    )
    names = ",".join(f"DNS:{host}" for host in hosts)
    (folder / "leaf.ext").write_text(
        f"subjectAltName={names}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n"
    )
    openssl("req", *key, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", f"/CN={hosts[0]}")
    openssl(
        "x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
        "-CAcreateserial", "-days", "2", "-extfile", "leaf.ext", "-out", "leaf.pem",
    )


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up is no event here: what matters is what was recorded."""


class StandIn:
    """Both servers; `close` ends them."""

    hosts = HOSTS

    def __init__(self, folder: Path):
        make_certificates(folder, self.hosts)
        self.root = folder / "ca.pem"
        self._records: OrderedDict[str, dict] = OrderedDict()
        self._lock = threading.Lock()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "leaf.pem", folder / "leaf.key")
        self._api = _Server(("127.0.0.1", 0), self._api_handler(tls))
        self._observer = _Server(("127.0.0.1", 0), self._observer_handler())
        for server in (self._api, self._observer):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        """Where the HTTPS API listens."""
        return self._api.server_address[1]

    @property
    def observer_url(self) -> str:
        """Where `GET /seen/<nonce>` tells what arrived."""
        return f"http://127.0.0.1:{self._observer.server_address[1]}"

    def seen(self, nonce: str) -> dict | None:
        """The request that carried this nonce."""
        with self._lock:
            return self._records.get(nonce)

    def close(self) -> None:
        for server in (self._api, self._observer):
            server.shutdown()
            server.server_close()

    def _record(self, nonce: str, request: dict) -> None:
        with self._lock:
            self._records[nonce] = request
            while len(self._records) > RECORDS_MAX:
                self._records.popitem(last=False)

    def _api_handler(self, tls: ssl.SSLContext):
        stand_in = self

        class Handler(_Quiet):
            def setup(self):
                # In the connection's own thread: a silent client must not hold up the others.
                self.request.settimeout(CONNECTION_SEC_MAX)
                self.request = tls.wrap_socket(self.request, server_side=True)
                super().setup()

            def answer(self):
                length = int(self.headers.get("content-length") or 0)
                if length > BODY_BYTES_MAX:
                    return self.reply(413, {"error": "too long"})
                query = urllib.parse.urlsplit(self.path).query
                nonce = urllib.parse.parse_qs(query).get("nonce", [""])[0]
                request = {
                    "method": self.command,
                    "path": self.path,
                    "headers": {name.lower(): value for name, value in self.headers.items()},
                    "body": self.rfile.read(length).decode("utf-8", "replace"),
                }
                stand_in._record(nonce, request)
                self.reply(200, {"echo": request})

            do_GET = do_POST = do_PUT = answer

        return Handler

    def _observer_handler(self):
        stand_in = self

        class Handler(_Quiet):
            def do_GET(self):
                request = stand_in.seen(self.path.removeprefix("/seen/"))
                self.reply(200 if request else 404, request or {"error": "not seen"})

        return Handler


class _Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Requests carry real values: nothing is printed."""

    def reply(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
