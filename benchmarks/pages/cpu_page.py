"""Reads the records of the CPU and writes the tables that the documentation shows of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sample_attention.lab.bench.tables import coverage_shown

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RECORDS = ROOT / "benchmarks" / "records" / "cpu_attention.jsonl"
BUSY_RECORDS = RECORDS.with_name("cpu_busy.jsonl")
NO_RECORDS = "No records yet: `make bench-cpu` makes them."
NO_BUSY_RECORDS = "No records yet: `make bench-cpu-busy` makes them."

Row = dict[str, Any]


def read_records(path: Path = RECORDS) -> list[Row]:
    """The latest record of each measurement, in the order of the tables.

    An input is named `captured:model/text/layer`; the parts become fields of their own, and
    `ms_dense` the time of `sdpa`.
    """
    rows = _lines(path)
    for row in rows:
        model, text, layer = row["input"].removeprefix("captured:").rsplit("/", 2)
        row |= {"model": model, "text": text, "layer": int(layer)}
        row["ms_dense"] = row["ms_dense"]["sdpa"]
    identity = ("preset", "model", "text", "dtype", "threads", "coverage", "seq_len", "layer")
    latest = {tuple(row[name] for name in identity): row for row in rows}
    presets = ["default", "fast", "pooled", "paper", "mlsys"]
    return sorted(
        latest.values(),
        key=lambda r: (presets.index(r["preset"]), r["seq_len"], r["model"], r["layer"]),
    )


def read_busy(path: Path = BUSY_RECORDS) -> list[Row]:
    """The latest record of each layer beside so many busy programs, few first."""
    rows = [row | {"layer": int(row["input"].rpartition("/")[2])} for row in _lines(path)]
    latest = {(row["busy"], row["layer"]): row for row in rows}
    return [latest[case] for case in sorted(latest)]


def _lines(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def by_length(rows: list[Row]) -> list[Row]:
    """Means over a model's measured layers: this project's rules at each length and coverage."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row["preset"] in {"default", "pooled"}:
            case = row["preset"], row["model"], row["text"], row["seq_len"], row["coverage"]
            groups.setdefault(case, []).append(row)
    means: list[Row] = []
    for group in groups.values():
        mean = {
            name: sum(r[name] for r in group) / len(group)
            for name in ("density", "retained_mass_mean", "ms_dense", "ms_total")
        }
        speedup = mean["ms_dense"] / mean["ms_total"]
        means.append(group[0] | mean | {"layers": len(group), "speedup": speedup, "group": group})
    return means


def provenance(rows: list[Row]) -> str:
    """Machine, threads, dtype, versions and commit of records, each named once."""
    commits = dict.fromkeys((r["commit"] or "unknown") for r in rows)
    short = [c[:10] + "-dirty" * c.endswith("-dirty") for c in commits]
    parts = [
        _distinct(r["device"] for r in rows), _distinct(f"{r['threads']} threads" for r in rows),
        _distinct(r["dtype"] for r in rows), "torch " + _distinct(r["torch"] for r in rows),
        "commit " + _distinct(short),
    ]  # fmt: skip
    return ", ".join(parts)


def _distinct(values: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(values))


Columns = dict[str, Callable[[Row], str]]


def _milliseconds(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = row.get(name)
        return "–" if value is None else f"{value:,.{0 if value >= 100 else 2}f}"

    return cell


COLUMNS: Columns = {
    "preset": lambda r: r["preset"],
    "model": lambda r: r["model"],
    "layer": lambda r: str(r["layer"]),
    "tokens": lambda r: f"{r['seq_len']:,}",
    "coverage": coverage_shown,
    "density": lambda r: f"{r['density']:.3f}",
    "retained mass": lambda r: f"{r['retained_mass_mean']:.3f}",
    "select (ms)": _milliseconds("ms_select"),
    "attend (ms)": _milliseconds("ms_attend"),
    "total (ms)": _milliseconds("ms_total"),
    "dense (ms)": _milliseconds("ms_dense"),
    "floor (ms)": _milliseconds("ms_floor"),
    "speed-up": lambda r: f"{r['speedup']:.2f}×",
}


BUSY: Columns = {
    "other programs": lambda r: str(r["busy"]),
    "layer": lambda r: str(r["layer"]),
    "tokens": lambda r: f"{r['seq_len']:,}",
    "dense (ms)": _milliseconds("ms_dense"),
    "sparse (ms)": _milliseconds("ms_sparse"),
    "speed-up": lambda r: f"{r['ms_dense'] / r['ms_sparse']:.2f}×",
    "sparse before (ms)": _milliseconds("ms_sparse_before"),
}


def table(rows: list[Row], columns: Columns, path: Path, nothing: str) -> str:
    """Records of a file as a Markdown table, with where they come from; without any, `nothing`."""
    if not rows:
        return nothing
    lines = [list(columns), ["---"] + ["--:"] * (len(columns) - 1)]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{provenance(rows)}; records: `{path.relative_to(ROOT).as_posix()}`."


def tables() -> dict[Path, str]:
    """The page that holds the tables between markers, with its text as it should be."""
    page = DOCS / "research" / "performance-cpu.md"
    text = page.read_text("utf-8")
    for name, written in (
        ("cpu", table(read_records(), COLUMNS, RECORDS, NO_RECORDS)),
        ("cpu-busy", table(read_busy(), BUSY, BUSY_RECORDS, NO_BUSY_RECORDS)),
    ):
        start, end = (f"<!-- {name}-table:{edge} -->" for edge in ("start", "end"))
        head, _, rest = text.partition(start)
        text = f"{head}{start}\n{written}\n{end}{rest.partition(end)[2]}"
    return {page: text}
