"""A fresh private server with its stand-in API, and the promise that nothing of it stays.

Everything it writes is in one temporary folder. Sandboxes outlive the server, so they are deleted
through the API first; then the server is stopped by its process id; then the machine is searched
for processes and mounts of that folder, and each one found is removed and told.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from .standin import StandIn

START_SEC_MAX = 30
STOP_SEC_MAX = 15
DELETE_SEC_MAX = 60
LOG_TAIL_LINES = 30


class Stage:
    """Starts with `open`, ends with `close`. `hosts` is what stands in for the hosts called."""

    def __init__(self, binary: Path, hosts: type = StandIn):
        self.binary = binary
        self._hosts = hosts
        self.folder = Path(tempfile.mkdtemp(prefix="oc-clients-"))
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self.key = "osb_" + secrets.token_hex(32)
        self.url = ""
        # Any free port at first, then the same one, so that clients find a server that came back.
        self._listen = "127.0.0.1:0"
        self._server: subprocess.Popen | None = None
        self.stand_in = None

    def open(self) -> None:
        """Starts the stand-in and the server; returns when requests are answered."""
        (self.folder / "home").mkdir(mode=0o700)
        # Documents call it `oc`, whatever the tested file is called.
        (self.folder / "bin").mkdir()
        (self.folder / "bin" / "oc").symlink_to(self.binary)
        self.stand_in = self._hosts(self.folder)
        self._start_server()

    def environment(self) -> dict[str, str]:
        """What a suite is told, and nothing of this machine's proxies or keys."""
        stand_in = self.stand_in
        return self._bare() | {
            "OPENCOMPUTER_API_URL": self.url,
            "OPENCOMPUTER_API_KEY": self.key,
            # The names that Python 0.3.0 reads.
            "OPENSANDBOX_API_URL": self.url,
            "OPENSANDBOX_API_KEY": self.key,
            "OC_STANDIN_HOSTS": ",".join(stand_in.hosts),
            "OC_STANDIN_PORT": str(stand_in.port),
            "OC_OBSERVER_URL": stand_in.observer_url,
            "OC_NO_UPDATE_CHECK": "1",
            # In CI nothing may be missing.
            "CI": os.environ.get("CI", ""),
        }

    def close(self) -> list[str]:
        """Removes everything; returns what was left behind and had to be removed by force."""
        left = []
        try:
            if self.data.exists():
                left += self._delete_sandboxes()
        finally:
            self._stop_server()
            if self.stand_in:
                self.stand_in.close()
            left += self._sweep()
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.folder.exists():
                left.append(f"the folder {self.folder} could not be removed")
        return left

    def kill_server(self) -> None:
        """As a crash does; sandboxes go on running."""
        self._server.kill()
        self._server.wait()

    def start_server(self) -> None:
        """Starts it again, at the same address; returns when requests are answered."""
        self._start_server()

    def log_tail(self) -> str:
        """The end of the server's log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _bare(self) -> dict[str, str]:
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def _start_server(self) -> None:
        endpoint = self.data / "endpoint.json"
        endpoint.unlink(missing_ok=True)
        arguments = ["--data-dir", str(self.data), "--listen", self._listen]
        arguments += ["--egress-allow-private", "127.0.0.0/8"]
        arguments += ["--egress-root", str(self.stand_in.root)]
        for host in self.stand_in.hosts:
            arguments += ["--egress-host", f"{host}=127.0.0.1"]
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [self.binary, "serve", *arguments],
                env=self._bare() | {"OPENCOMPUTER_BOOTSTRAP_KEY": self.key, "NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + START_SEC_MAX
        while time.monotonic() < until and self._server.poll() is None:
            if endpoint.exists():
                self.url = json.loads(endpoint.read_text())["url"]
                self._listen = urllib.parse.urlsplit(self.url).netloc
                if self._call("GET", "/api/whoami")[0] == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the server did not start; the end of its log:\n{self.log_tail()}")

    def _stop_server(self) -> None:
        if self._server is None or self._server.poll() is not None:
            return
        self._server.terminate()
        try:
            self._server.wait(STOP_SEC_MAX)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _call(self, method: str, path: str):
        request = urllib.request.Request(
            self.url + path, method=method, headers={"X-API-Key": self.key}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=DELETE_SEC_MAX) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            return 0, str(error).encode()

    def _delete_sandboxes(self) -> list[str]:
        left = []
        if self._server is None or self._server.poll() is not None:
            left.append(f"the server had ended; the end of its log:\n{self.log_tail()}")
            self._start_server()
        status, body = self._call("GET", "/api/sandboxes?status=running,hibernated&limit=200")
        if status != 200:
            return left + [f"the sandboxes could not be listed: {status} {body!r}"]
        for sandbox in json.loads(body):
            status, body = self._call("DELETE", f"/api/sandboxes/{sandbox['sandboxID']}")
            if status not in (204, 404):
                left.append(f"{sandbox['sandboxID']} could not be deleted: {status} {body!r}")
        return left

    def _sweep(self) -> list[str]:
        """Only processes and mounts that use our own folder are touched."""
        left = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid() and self._uses_folder(entry):
                left.append(f"process {entry.name} was still there")
                with contextlib.suppress(OSError):  # it may end at this moment
                    os.kill(int(entry.name), signal.SIGKILL)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        for point in reversed([line.split()[4] for line in mounts]):
            if Path(point).is_relative_to(self.folder):
                subprocess.run(["umount", "-l", point], check=False)
                left.append(f"{point} was still mounted")
        return left

    def _uses_folder(self, process: Path) -> bool:
        try:
            links = [process / "cwd", *(process / "fd").iterdir()]
        except OSError:
            return False  # it ended meanwhile
        for link in links:
            try:
                if Path(os.readlink(link)).is_relative_to(self.data):
                    return True
            except OSError:
                continue
        return False
