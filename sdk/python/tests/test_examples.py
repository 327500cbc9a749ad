"""The examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXPECTED = {
    "quickstart": r"exit code 0: inside, the key is osb_sealed_[0-9a-f]{32}\n",
    "stream": r"line 1\nline 2\nline 3\nexit code 0\nnumbers has 3893 bytes\n",
    "branches": r"\['colour=green', 'colour=red'\] while the first one has colour=blue\n",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str) -> None:
    program = [sys.executable, "-B", str(FOLDER / f"{name}.py")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(EXPECTED[name], done.stdout), done.stdout
