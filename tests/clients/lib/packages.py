"""Installs the published clients, pinned, into a cache below `target/`; a second call does nothing.

The only step that uses the network; the suites themselves stay on loopback.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PYTHON_VERSIONS = ("0.3.0", "0.5.2", "0.6.9", "1.1.0")
TYPESCRIPT_VERSION = "0.12.4"


def _installed(folder: Path, inputs: list[Path]) -> bool:
    stamp = folder / "installed"
    return stamp.exists() and stamp.read_text() == _digest(inputs)


def _digest(inputs: list[Path]) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in inputs)).hexdigest()


def typescript(cache: Path) -> Path:
    """A folder with `node_modules` and a copy of the suite: ES modules resolve from their file."""
    source, folder = HERE / "typescript", cache / "typescript"
    inputs = [source / "package.json", source / "package-lock.json"]
    if not _installed(folder, inputs):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in inputs:
            shutil.copy(path, folder)
        quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        subprocess.run(["npm", "ci", *quiet], cwd=folder, check=True)
        (folder / "installed").write_text(_digest(inputs))
    for old in folder.glob("*.mjs"):
        old.unlink()
    for path in source.glob("*.mjs"):
        shutil.copy(path, folder)
    return folder


def python(cache: Path, version: str) -> Path:
    """The interpreter of an environment that holds this version and nothing else."""
    requirements = HERE / "python" / "requirements" / f"{version}.txt"
    folder = cache / f"python-{version}"
    program = folder / "venv" / "bin" / "python"
    if not _installed(folder, [requirements]):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        pip = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "-r", requirements], check=True)
        (folder / "installed").write_text(_digest([requirements]))
    return program
