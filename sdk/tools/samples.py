"""Code samples out of the documents' fixtures."""

import re
from pathlib import Path

CLASSES = ("Image", "Project", "Sandbox", "SecretStore", "Snapshots")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document: Path, language: str) -> list[str]:
    """In their order."""
    return [code for kind, code in _BLOCK.findall(document.read_text()) if kind == language]


def typescript_modules(folder: Path) -> dict[str, str]:
    """A module for each sample: the sample as it is, with what its document had said before."""
    modules = {}
    for document in sorted(folder.glob("*-typescript.md")):
        for number, code in enumerate(blocks(document, "typescript"), 1):
            modules[f"{document.stem}-{number:02}.ts"] = _module(code)
    return modules


#: Types that a program hands in; the others come back.
_GIVEN = ("SandboxOpts", "McpServerConfig")


def types_module(folder: Path) -> str:
    """What the document lets a program write must fit ours, and ours what it lets it read."""
    interfaces = blocks(folder / "types.md", "typescript")
    lines = ['import type * as sdk from "@opencomputer/sdk";', "type Image = sdk.Image;"]
    lines += ["type Fits<A extends B, B> = [A, B];", "namespace Doc {"]
    lines += [*(f"export {code}" for code in interfaces), "}"]
    for name in re.findall(r"interface (\w+)", "\n".join(interfaces)):
        both = [f"sdk.{name}", f"Doc.{name}"]
        one, other = reversed(both) if name in _GIVEN else both
        lines.append(f"export type {name} = Fits<{one}, {other}>;")
    return "\n".join(lines) + "\n"


def _module(code: str) -> str:
    names = set(re.findall(r"\bconst (\w+)", code))
    imported = " ".join(re.findall(r"import (\{.*?\})", code))
    missing = [
        name
        for name in CLASSES
        if re.search(rf"\b{name}\b", code) and not re.search(rf"\b{name}\b", imported)
    ]
    lines = []
    if missing:
        lines.append(f'import {{ {", ".join(missing)} }} from "@opencomputer/sdk";')
    if re.search(r"\bsandbox ?\.", code) and "sandbox" not in names:
        lines.append('import type { Sandbox as Given } from "@opencomputer/sdk";')
        lines.append("const { sandbox } = globalThis as unknown as { sandbox: Given };")
    return "\n".join([*lines, code, f"export {{ {', '.join(sorted(names))} }};", ""])
