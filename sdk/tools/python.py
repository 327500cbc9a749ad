"""The Python library: formatting, strict types, `python -m build`, and tests of the built wheel."""

import shutil
import subprocess
import sys
from pathlib import Path

from . import stamp


def _program(work: Path) -> Path:
    return work / "venv" / "bin" / "python"


def install(source: Path, work: Path) -> None:
    inputs = [source / "requirements.txt"]
    if stamp.done(work, inputs):
        return
    shutil.rmtree(work, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
    pip = [_program(work), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "-r", inputs[0]], check=True)
    stamp.mark(work, inputs)


def build(source: Path, work: Path, dist: Path, _: Path) -> None:
    def module(*words: str | Path, cwd: Path = source) -> None:
        subprocess.run([_program(work), "-B", "-m", *words], cwd=cwd, check=True)

    caches = work / "cache"
    module("ruff", "check", "--quiet", "--cache-dir", caches / "ruff", ".")
    module("ruff", "format", "--quiet", "--check", "--cache-dir", caches / "ruff", ".")
    for old in dist.glob("opencomputer_sdk-*"):
        old.unlink()
    # A copy, so that nothing is written into the source.
    copy = work / "source"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    log = subprocess.run(
        [_program(work), "-m", "build", "--no-isolation", "--outdir", dist],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    if log.returncode != 0:
        print(log.stdout, log.stderr, file=sys.stderr)
        log.check_returncode()
    (wheel,) = dist.glob("opencomputer_sdk-*.whl")
    pip = ("pip", "install", "--quiet", "--disable-pip-version-check")
    module(*pip, "--no-deps", "--no-index", "--force-reinstall", wheel)
    # The tests and examples see the wheel's types, as a user's program does.
    module("mypy", "--cache-dir", caches / "mypy", "src")
    module("mypy", "--cache-dir", caches / "mypy-user", "tests", "examples")


def suite(work: Path) -> tuple[list, Path]:
    """How its tests are started, and where."""
    return [_program(work), "-B", "-m", "pytest", "-q", "tests"], work / "source"
