"""Fetches what the programs need, pinned, into a cache below `target/`; a second call does nothing.

The only step that uses the network. The cache then is what the local package indexes hand out:
`wheels/` and `npm/`, with `wheels.json` and `npm.json` as their lists.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
# The interpreter that sandboxes have: the wheels are for its version.
INSIDE_PYTHON = "/usr/bin/python3"
# What `npm install` installs inside; neither depends on another package.
NPM_NAMES = ("undici", "ws")
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def install(cache: Path) -> None:
    """Fills the cache, and puts the current upstream beside the packages it imports."""
    inputs = [HERE / "python" / "requirements.txt", HERE / "node" / "package-lock.json"]
    inside = subprocess.run([INSIDE_PYTHON, "-c", VERSION], capture_output=True, check=True).stdout
    stamp = hashlib.sha256(inside + b"".join(path.read_bytes() for path in inputs)).hexdigest()
    installed = cache / "installed"
    if not installed.exists() or installed.read_text() != stamp:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        _wheels(cache, inputs[0], inside.decode().strip())
        _node(cache)
        installed.write_text(stamp)
    shutil.copy(HERE / "node" / "upstream.mjs", cache)


def _wheels(cache: Path, requirements: Path, version: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", cache / "venv"], check=True)
    pip = [cache / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    folder = cache / "wheels"
    only = ["--only-binary=:all:", "--python-version", version]
    subprocess.run([*pip, "download", "-q", *only, "-d", folder, "-r", requirements], check=True)
    names = sorted(path.name for path in folder.iterdir())
    (cache / "wheels.json").write_text(json.dumps(names))


def _node(cache: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "node" / name, cache)
    quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(["npm", "ci", "--ignore-scripts", *quiet], cwd=cache, check=True)
    (cache / "npm").mkdir()
    packages = {}
    for name in NPM_NAMES:
        # Packed again from what the lock file verified.
        pack = ["npm", "pack", "--ignore-scripts", "--json", "--pack-destination", "npm"]
        done = subprocess.run(
            [*pack, f"./node_modules/{name}"], cwd=cache, check=True, capture_output=True
        )
        packed = json.loads(done.stdout)[0]
        digest = hashlib.sha512((cache / "npm" / packed["filename"]).read_bytes()).digest()
        packages[name] = {
            "version": packed["version"],
            "archive": packed["filename"],
            "integrity": "sha512-" + base64.b64encode(digest).decode(),
        }
    (cache / "npm.json").write_text(json.dumps(packages))
