"""Writes the page that says with which versions of other packages the tests were run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sample_attention.lab.records import read_lines

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RECORDS = ROOT / "benchmarks" / "records" / "versions.jsonl"
PAGE = DOCS / "reference" / "versions.md"
START, END = "<!-- versions:start -->", "<!-- versions:end -->"
NO_RECORDS = "No records yet: `make test-versions` makes them."

Row = dict[str, Any]
PACKAGES = ("torch", "transformers", "triton", "numpy", "python")
ENDS = {"passed": "passed", "failed": "failed", "error": "errors", "skipped": "skipped"}
ENDS |= {"xfailed": "expected to fail"}


def read_versions(path: Path = RECORDS) -> list[Row]:
    """The latest record of each set and choice of tests, the oldest versions first."""
    if not path.exists():
        return []
    latest = {(row["set"], row["interpreted"], *row["tests"]): row for _, row in read_lines([path])}
    return sorted(latest.values(), key=lambda row: row["set"], reverse=True)


def body(rows: list[Row]) -> str:
    """What the record says, as Markdown."""
    if not rows:
        return NO_RECORDS
    sets = {row["set"]: row for row in rows}
    versions = [
        ["", *sets],
        ["---", *("--:" for _ in sets)],
        *([name, *(row[name] for row in sets.values())] for name in PACKAGES),
    ]
    runs = [
        ["set", "tests", *ENDS.values(), "minutes"],
        ["---", "---", *("--:" for _ in ENDS), "--:"],
        *(
            [row["set"], _tests(row), *(row[end] for end in ENDS), f"{row['seconds'] / 60:.0f}"]
            for row in rows
        ),
    ]
    return "\n\n".join([_table(versions), _table(runs), _provenance(rows)])


def _tests(row: Row) -> str:
    named = ", ".join(f"`{path.removeprefix('tests/')}`" for path in row["tests"])
    return named + (", interpreted" if row["interpreted"] else "")


def _table(lines: list[list[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _provenance(rows: list[Row]) -> str:
    platforms, dates, commits = (
        " / ".join(dict.fromkeys(str(row[name] or "unknown")[:most] for row in rows))
        for name, most in (("platform", None), ("date", 10), ("commit", 10))
    )
    return f"{platforms}, {dates}, commit {commits}; records: `benchmarks/records/versions.jsonl`."


def tables() -> dict[Path, str]:
    """The page that holds the table between markers, with its text as it should be."""
    head, _, rest = PAGE.read_text("utf-8").partition(START)
    return {PAGE: f"{head}{START}\n{body(read_versions())}\n{END}{rest.partition(END)[2]}"}
