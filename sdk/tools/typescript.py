"""The TypeScript library: strict types, `npm pack`, and tests against the packed package."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from . import samples, stamp

QUIET = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
#: What a user of the package has: the strictest settings, no skipping of its types.
CONSUMER = {
    "compilerOptions": {
        "target": "ES2022",
        "module": "NodeNext",
        "moduleResolution": "NodeNext",
        "lib": ["ES2022", "ESNext.Disposable", "DOM", "DOM.Iterable", "DOM.AsyncIterable"],
        "types": ["node"],
        "typeRoots": ["../node_modules/@types"],
        "outDir": "build",
        "rootDir": ".",
        "strict": True,
        "exactOptionalPropertyTypes": True,
        "noUncheckedIndexedAccess": True,
        "skipLibCheck": False,
    },
    "include": ["test", "examples", "samples"],
}

#: A web page's program: no types of Node.js, and none newer than it asks for.
WEB = {
    "compilerOptions": {
        "target": "ES2022",
        "module": "ESNext",
        "moduleResolution": "Bundler",
        "lib": ["ES2022", "DOM", "DOM.Iterable"],
        "types": [],
        "strict": True,
        "skipLibCheck": False,
        "noEmit": True,
    },
    "files": ["web.ts"],
}


def install(source: Path, work: Path) -> None:
    inputs = [source / "package.json", source / "package-lock.json"]
    if stamp.done(work, inputs):
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for path in inputs:
        shutil.copy(path, work)
    subprocess.run(["npm", "ci", *QUIET], cwd=work, check=True)
    stamp.mark(work, inputs)


def build(source: Path, work: Path, dist: Path, documents: Path) -> None:
    for name in ("src", "dist", "consumer"):
        shutil.rmtree(work / name, ignore_errors=True)
    shutil.copytree(source / "src", work / "src")
    for name in ("package.json", "tsconfig.json", "README.md", "LICENSE"):
        shutil.copy(source / name, work)
    compiler = work / "node_modules" / "typescript" / "bin" / "tsc"
    subprocess.run(["node", compiler, "-p", "tsconfig.json"], cwd=work, check=True)
    packed = subprocess.run(
        ["npm", "pack", "--json", "--ignore-scripts", "--pack-destination", dist],
        cwd=work,
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(packed.stdout)
    report = report[0] if isinstance(report, list) else next(iter(report.values()))
    _consumer(source, work / "consumer", dist / report["filename"], documents)
    for project in (".", "web.json"):
        subprocess.run(["node", compiler, "-p", project], cwd=work / "consumer", check=True)


def _consumer(source: Path, folder: Path, package: Path, documents: Path) -> None:
    """A project that has the packed package, our tests, the examples and the samples."""
    installed = folder / "node_modules" / "@opencomputer" / "sdk"
    installed.mkdir(parents=True)
    with tarfile.open(package) as archive:
        # Our own package; Python before 3.11.4 has no filters.
        filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder / "unpacked", **filters)
    installed.rmdir()
    (folder / "unpacked" / "package").rename(installed)
    (folder / "package.json").write_text('{"type":"module","private":true}\n')
    (folder / "tsconfig.json").write_text(json.dumps(CONSUMER))
    (folder / "web.json").write_text(json.dumps(WEB))
    (folder / "web.ts").write_text('export * from "@opencomputer/sdk";\n')
    for name in ("test", "examples"):
        shutil.copytree(source / name, folder / name)
    (folder / "samples").mkdir()
    for name, code in samples.typescript_modules(documents).items():
        (folder / "samples" / name).write_text(code)
    (folder / "samples" / "types.ts").write_text(samples.types_module(documents))


def suite(work: Path) -> tuple[list, Path]:
    """How its tests are started, and where."""
    folder = work / "consumer"
    tests = sorted((folder / "build" / "test").glob("*.test.js"))
    # One file after the other: two of them restart the server.
    flags = ["--test", "--test-concurrency=1", "--test-reporter=spec"]
    return ["node", *flags, *tests], folder
