"""Images as a list of steps."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Image:
    """Describes an image; every method gives a new one and changes none."""

    _base: str = "base"
    _steps: tuple[dict[str, Any], ...] = ()
    _builder_memory_mb: int | None = None

    @classmethod
    def base(cls) -> Image:
        """The default environment, with Python, Node.js and build tools."""
        return cls()

    def apt_install(self, packages: list[str]) -> Image:
        """System packages, as root."""
        return self._with("apt_install", packages=list(packages))

    def pip_install(self, packages: list[str]) -> Image:
        """Packages for the system's Python, as root."""
        return self._with("pip_install", packages=list(packages))

    def run_commands(self, *commands: str) -> Image:
        """Commands joined with ``&&``, as the sandbox's user."""
        return self._with("run", commands=list(commands))

    def env(self, vars: dict[str, str]) -> Image:
        """Variables for later steps and everything that runs in the sandbox."""
        return self._with("env", vars=dict(vars))

    def workdir(self, path: str) -> Image:
        """Folder of later steps and commands; it is made."""
        return self._with("workdir", path=path)

    def add_file(self, remote_path: str, content: str) -> Image:
        """A file with this text."""
        return self._file(remote_path, content.encode())

    def add_local_file(self, local_path: str, remote_path: str) -> Image:
        """A file of this machine, read now."""
        return self._file(remote_path, Path(local_path).read_bytes())

    def add_local_dir(self, local_path: str, remote_path: str) -> Image:
        """A folder of this machine with everything below, read now."""
        root = Path(local_path)
        if not root.is_dir():
            raise NotADirectoryError(local_path)
        found = sorted(path for path in root.rglob("*") if path.is_file())
        files = [
            {
                "relativePath": path.relative_to(root).as_posix(),
                "content": _base64(path.read_bytes()),
            }
            for path in found
        ]
        return self._with("add_dir", path=remote_path, files=files)

    def builder_memory(self, mb: int) -> Image:
        """Memory for the build, in MB. It makes no other image."""
        return replace(self, _builder_memory_mb=mb)

    def to_dict(self) -> dict[str, Any]:
        """What is sent to the server."""
        manifest: dict[str, Any] = {"base": self._base, "steps": copy.deepcopy(list(self._steps))}
        if self._builder_memory_mb is not None:
            manifest["builderMemoryMB"] = self._builder_memory_mb
        return manifest

    def cache_key(self) -> str:
        """SHA-256 of what the image consists of, in hex: equal for equal builders."""
        content = {"base": self._base, "steps": list(self._steps)}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _file(self, path: str, content: bytes) -> Image:
        return self._with("add_file", path=path, content=_base64(content), encoding="base64")

    def _with(self, kind: str, **args: Any) -> Image:
        return replace(self, _steps=(*self._steps, {"type": kind, "args": args}))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
