"""Records as tables: attention alone, its kernels, and the time to first token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import PRESETS, names_tuned
from ...config.schema import old_fields
from ...errors import InvalidInput
from ..records import Kinds, check_fields, config_of, read_lines

Record = dict[str, Any]
"""A row as it is read back: fields that another version wrote may be missing."""


@dataclass(frozen=True)
class RecordTable:
    """Cells of text, ready to print.

    Attributes:
        title: what is measured, and where.
        headers: one per column.
        lines: cells by line.
    """

    title: str
    headers: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table in Markdown; columns but the first are aligned to the right."""
        rules = ["---", *["--:"] * (len(self.headers) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.headers, rules, *self.lines)]
        return "\n".join([f"**{self.title}**", "", *lines])


def read_records(paths: Iterable[Path]) -> list[Record]:
    """The records of files; of the same measurement the last one counts.

    Raises:
        InvalidInput: a line is not a record, or not whole; or no file holds any.
        OSError: a file cannot be read.
    """
    latest: dict[str, Record] = {}
    for where, record in read_lines(paths):
        if not isinstance(record, dict) or not MARKERS.keys() & record.keys():
            raise InvalidInput(f"{where} is not a record of `bench attention`, `kernels` or `ttft`")
        for marker in MARKERS.keys() & record.keys():
            check_fields(where, record, MARKERS[marker], OPTIONAL)
        alike = {**record, "config": config_of(record)}
        latest[json.dumps([alike.get(name) for name in IDENTITY])] = record
    if not latest:
        raise InvalidInput(
            "the files hold no records; `bench attention`, `kernels` and `ttft` make them"
        )
    return list(latest.values())


NUMBER = (int, float)
MARKERS: dict[str, Kinds] = {
    "ms_attend": {"input": (str,), "seq_len": (int,), "ms_dense": (dict,)},
    "kernel": {"kernel": (str,), "seq_len": (int,)},
    "ttft_ms": {"ttft_ms": NUMBER, "model": (str,), "text": (str,), "method": (str,),
                "seq_len": (int,), "same_first_token": (bool,)},
}  # fmt: skip
"""A record has the field of its kind of measurement, and with it these."""

OPTIONAL: Kinds = {
    **dict.fromkeys(
        ("ms_attend", "ms_select", "ms_total", "coverage", "density", "retained_mass_mean",
         "retained_mass_p5", "attend_tflops", "launches", "ms", "ms_p20", "ms_p80", "floor_ms",
         "gap", "share_of_fa3", "host_ms", "sparse_layers", "ttft_ms_p20", "ttft_ms_p80",
         "next_token_kl"), NUMBER,
    ),
    **dict.fromkeys(("preset", "provider", "backend", "floor"), (str,)), "config": (dict,),
}  # fmt: skip
"""What may be missing or null."""

IDENTITY = (
    "kernel", "provider", "input", "model", "text", "yarn", "method", "seq_len", "batch", "heads",
    "kv_heads", "head_dim", "dtype", "backend", "preset", "coverage", "config", "segment", "window",
    "routed", "target_density", "device", "threads",
)  # fmt: skip
"""What makes two records the same measurement."""


def tables_of(records: Sequence[Record]) -> list[RecordTable]:
    """A table per kind of measurement and machine, in the order of the records."""
    found: list[RecordTable] = []
    for kind, marker, columns in (
        ("Attention alone", "ms_attend", ATTENTION),
        ("Kernels", "kernel", KERNELS),
        ("Time to first token", "ttft_ms", TTFT),
    ):
        groups: dict[str, list[Record]] = {}
        for record in records:
            if marker in record:
                groups.setdefault(machine_of(record), []).append(record)
        found += [_table(f"{kind}, {where}", columns, rows) for where, rows in groups.items()]
    return found


def machine_of(record: Record) -> str:
    """Device, its threads where it is a CPU, and the version of torch."""
    device = str(record.get("device", "unknown device"))
    threads = "" if device.startswith("NVIDIA") else f", {record.get('threads')} threads"
    return f"{device}{threads}, torch {record.get('torch', '?')}"


def source_of(record: Record) -> str:
    """Where the inputs of attention come from: a model and layer, or `random`."""
    name = str(record["input"])
    if not name.startswith("captured:"):
        return name
    model, text, layer = name.removeprefix("captured:").rsplit("/", 2)
    return f"{model}, {text}, layer {layer}"


def rule_of(record: Record) -> str:
    """The preset with the fields that differ from it, coverage aside; `–` where nothing selects.

    Where the call ran dense its fields had no part.
    """
    if record.get("preset") is None:
        return "–"
    if record.get("routed") and record.get("route") == "dense":
        return record["preset"]
    if names_tuned(record["preset"]):
        return record["preset"]
    ran, preset = record.get("config", {}), PRESETS[record["preset"]].to_values()
    if "schema" in ran:
        ran, preset = _flat(ran), _flat(preset)
    else:  # of version 0.1, and named as it was written; the first records have none
        preset = old_fields(preset)
    changed = {x: value for x, value in ran.items() if value != preset.get(x)}
    changed.pop("coverage", None)
    words = ", ".join(f"{name}={value}".lower() for name, value in changed.items())
    return f"{record['preset']}, {words}" if words else record["preset"]


def _flat(config: Record) -> Record:
    """The fields of a configuration beside those of its parts; a ranking has its kind's name."""
    found: Record = {}
    for name, value in config.items():
        inner = {**value} if isinstance(value, dict) else {name: value}
        found |= {name if x == "kind" else x: y for x, y in inner.items()}
    return found


def best_dense(record: Record) -> tuple[str, float]:
    """The fastest dense provider of a record of attention, and its milliseconds."""
    return min(record["ms_dense"].items(), key=lambda item: item[1])


def speedup_of(record: Record) -> float:
    """Over the fastest dense provider: of the whole call, or of attending where nothing selects."""
    total = record.get("ms_total")
    return best_dense(record)[1] / (record["ms_attend"] if total is None else total)


def _table(title: str, columns: Columns, rows: list[Record]) -> RecordTable:
    lines = tuple(tuple(cell(row) for cell in columns.values()) for row in rows)
    return RecordTable(title, tuple(columns), lines)


def _number(name: str, digits: int) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        value = record.get(name)
        return "–" if value is None else f"{value:,.{digits}f}"

    return cell


def coverage_shown(record: Record) -> str:
    """The coverage as it was set, or a dash."""
    return f"{record['coverage']:g}" if record.get("coverage") is not None else "–"


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.{0 if value >= 100 else 2}f}"


def _time(name: str) -> Callable[[Record], str]:
    return lambda record: _milliseconds(record.get(name))


def _dense(record: Record) -> str:
    name, best = best_dense(record)
    return f"{_milliseconds(best)} ({name})"


Columns = dict[str, Callable[[Record], str]]

ATTENTION: Columns = {
    "input": source_of,
    "tokens": _number("seq_len", 0),
    "preset": rule_of,
    "coverage": coverage_shown,
    "backend": lambda r: r.get("backend") or "–",
    "density": _number("density", 3),
    "retained mass": _number("retained_mass_mean", 3),
    "p5": _number("retained_mass_p5", 3),
    "select (ms)": _time("ms_select"),
    "attend (ms)": _time("ms_attend"),
    "total (ms)": _time("ms_total"),
    "dense (ms)": _dense,
    "attend TFLOP/s": _number("attend_tflops", 1),
    "speed-up": lambda r: f"{speedup_of(r):.2f}×",
}
KERNELS: Columns = {
    "kernel": lambda r: f"{r['kernel']} {r['provider']}" if r.get("provider") else r["kernel"],
    "tokens": _number("seq_len", 0),
    "preset": rule_of,
    "coverage": coverage_shown,
    "launches": _number("launches", 0),
    "device (ms)": _number("ms", 3),
    "p20": _number("ms_p20", 3),
    "p80": _number("ms_p80", 3),
    "floor (ms)": _number("floor_ms", 3),
    "bound by": lambda r: r.get("floor") or "–",
    "times the floor": _number("gap", 1),
    "of FA3": _number("share_of_fa3", 3),
    "host (ms)": _number("host_ms", 3),
}
TTFT: Columns = {
    "model": lambda r: r["model"],
    "text": lambda r: r["text"],
    "tokens": _number("seq_len", 0),
    "method": lambda r: r["method"],
    "coverage": lambda r: coverage_shown(r) if r.get("preset") else "–",
    "density": _number("density", 3),
    "sparse layers": _number("sparse_layers", 0),
    "TTFT (ms)": _time("ttft_ms"),
    "p20": _time("ttft_ms_p20"),
    "p80": _time("ttft_ms_p80"),
    "same first token": lambda r: "yes" if r["same_first_token"] else "no",
    "next-token KL": _number("next_token_kl", 4),
}
