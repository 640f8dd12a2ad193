"""Writes the page that says with which versions of other packages the tests were run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sample_attention.records import read_lines

DOCS = Path(__file__).resolve().parent
RECORDS = DOCS.parent / "benchmarks" / "records" / "versions.jsonl"
PAGE = DOCS / "reference" / "versions.md"
START, END = "<!-- versions:start -->", "<!-- versions:end -->"
NO_RECORDS = "No records yet: `make test-versions` makes them."

Row = dict[str, Any]
PACKAGES = ("torch", "transformers", "triton", "numpy", "python")
ENDS = ("passed", "failed", "error", "skipped", "xfailed")
TITLES = {"error": "errors", "xfailed": "expected to fail"}


def read_versions(path: Path = RECORDS) -> list[Row]:
    """The latest record of each set, the oldest versions first."""
    if not path.exists():
        return []
    latest = {row["set"]: row for _, row in read_lines([path])}
    return [latest[name] for name in ("oldest", "newest") if name in latest]


def body(rows: list[Row]) -> str:
    """What the record says, as Markdown."""
    if not rows:
        return NO_RECORDS
    cells = [
        ["", *(row["set"] for row in rows)],
        ["---", *("--:" for _ in rows)],
        *([name, *(row[name] for row in rows)] for name in PACKAGES),
        *([f"tests {TITLES.get(end, end)}", *(f"{row[end]:,}" for row in rows)] for end in ENDS),
        ["minutes", *(f"{row['seconds'] / 60:.0f}" for row in rows)],
    ]
    lines = [f"| {' | '.join(map(str, line))} |" for line in cells]
    made = "; ".join(
        f"{row['set']}: {row['date'][:10]}, commit {str(row['commit'] or 'unknown')[:10]}, "
        f"{row['platform']}" for row in rows
    )  # fmt: skip
    return "\n".join([*lines, "", f"{made}; records: `benchmarks/records/versions.jsonl`."])


def tables() -> dict[Path, str]:
    """The page that holds the table between markers, with its text as it should be."""
    head, _, rest = PAGE.read_text("utf-8").partition(START)
    return {PAGE: f"{head}{START}\n{body(read_versions())}\n{END}{rest.partition(END)[2]}"}
