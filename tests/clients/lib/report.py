"""What the suites found, as a table method x client, the failures below it, one closing line.

A suite writes JSON lines: `{"method", "check", "result", "detail"?}` with the results `passed`,
`failed`, `not yet` (the server has no such route yet) and `elsewhere` (another service's API), and
at its end `{"done": true}`. A suite without that line, or without a single passed check, failed.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

DETAIL_CHARS_MAX = 1500


@dataclass
class Cell:
    """All checks of one method with one client."""

    passed: int = 0
    failed: int = 0
    notes: set[str] = field(default_factory=set)

    def text(self) -> str:
        if self.failed:
            return f"FAILED {self.failed}/{self.failed + self.passed}"
        return f"ok {self.passed}" if self.passed else ", ".join(sorted(self.notes))


class Report:
    """Collects; prints; says whether all is well."""

    def __init__(self):
        self._clients: list[str] = []
        self._names: dict[str, str] = {}
        self._cells: dict[tuple[str, str], Cell] = {}
        self._failures: list[str] = []

    def read(self, client: str, path: Path) -> None:
        """Takes one suite's lines."""
        self._clients.append(client)
        done, passed = False, 0
        lines = path.read_text().splitlines() if path.exists() else []
        for line in map(json.loads, lines):
            if line.get("done"):
                done = True
                continue
            passed += line["result"] == "passed"
            self._take(client, line)
        if not done:
            self.fail(client, "suite", "it ended before its end")
        if not passed:
            self.fail(client, "suite", "not one check passed")

    def fail(self, client: str, method: str, detail: str) -> None:
        """A failure that no suite told."""
        self._take(client, {"method": method, "check": "", "result": "failed", "detail": detail})

    def _take(self, client: str, line: dict) -> None:
        # `set_timeout` and `setTimeout` are one row.
        row = line["method"].replace("_", "").lower()
        self._names.setdefault(row, line["method"])
        cell = self._cells.setdefault((row, client), Cell())
        if line["result"] == "passed":
            cell.passed += 1
        elif line["result"] == "failed":
            cell.failed += 1
            detail = line.get("detail", "")[:DETAIL_CHARS_MAX].replace("\n", "\n    ")
            self._failures.append(f"{client}: {line['method']}: {line['check']}\n    {detail}")
        else:
            cell.notes.add(line["result"])

    def _row(self, row: str, clients: list[str]) -> list[str]:
        cells = [self._cells.get((row, client)) for client in clients]
        return [cell.text() if cell else "-" for cell in cells]

    def print(self) -> bool:
        """Prints everything; true when nothing failed."""
        clients = list(dict.fromkeys(client for _, client in self._cells))
        header = ["METHOD", *clients]
        rows = [[name, *self._row(row, clients)] for row, name in self._names.items()]
        widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
        for line in [header, *rows]:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())
        if self._failures:
            print("\nFAILURES")
            print("\n".join(self._failures))
        passed = sum(cell.passed for cell in self._cells.values())
        failed = sum(cell.failed for cell in self._cells.values())
        print(f"\n{passed} passed, {failed} failed")
        return failed == 0 and passed > 0
