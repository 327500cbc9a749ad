"""Starts `upstream.mjs` with certificates, packages and a repository to clone."""

import json
import os
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

from lib.standin import make_certificates

# The secret is bound to the first; the second is allowed and has none.
HOSTS = ("api.interop.test", "open.interop.test")
VALUE = "sk-interop-canary-0a1b2c3d4e5f60718293"
STOP_SEC_MAX = 10


class Upstream:
    """One process; `close` ends it. Has what `Stage` asks of a stand-in."""

    hosts = HOSTS
    cache: Path

    def __init__(self, folder: Path):
        make_certificates(folder, HOSTS)
        self.root = folder / "ca.pem"
        for name in ("wheels", "wheels.json", "npm", "npm.json"):
            (folder / name).symlink_to(self.cache / name)
        _repository(folder / "git")
        self._process = subprocess.Popen(
            ["node", self.cache / "upstream.mjs", folder],
            env=os.environ | {"INTEROP_VALUE": VALUE},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports = json.loads(self._process.stdout.readline() or "{}")
        if not self.ports:
            raise RuntimeError("the upstream did not start")
        self.port = self.ports["web"]
        self.observer_url = f"http://127.0.0.1:{self.ports['observer']}"

    def seen(self, nonce: str) -> list[dict]:
        """Everything that arrived under this nonce."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.observer_url}/seen/{urllib.parse.quote(nonce)}") as reply:
            return json.load(reply)

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SEC_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _repository(folder: Path) -> None:
    """`repo.git` with one commit of one file."""
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "README").write_text("cloned\n")
    who = ["-c", "user.name=interop", "-c", "user.email=interop@interop.test"]
    for words in (
        ["init", "-q"],
        ["add", "README"],
        [*who, "commit", "-q", "-m", "One file"],
        ["clone", "-q", "--bare", ".", "../repo.git"],
    ):
        subprocess.run(["git", *words], cwd=work, check=True, capture_output=True)
