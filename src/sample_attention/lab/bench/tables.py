"""Records as tables: attention alone, its kernels, and the time to first token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...config import PRESETS, names_tuned
from ...config.schema import old_fields
from ..capture import captured_from
from ..records import Record, RecordTable, machine_of


def tables_of(records: Sequence[Record]) -> list[RecordTable]:
    """A table per kind of measurement and machine, in the order of the records."""
    tables: list[RecordTable] = []
    for kind, marker, columns in (
        ("Attention alone", "ms_attend", ATTENTION),
        ("Kernels", "kernel", KERNELS),
        ("Time to first token", "ttft_ms", TTFT_COLUMNS),
    ):
        groups: dict[str, list[Record]] = {}
        for record in records:
            if marker in record:
                groups.setdefault(machine_of(record), []).append(record)
        tables += [_table(f"{kind}, {where}", columns, rows) for where, rows in groups.items()]
    return tables


def source_of(record: Record) -> str:
    """Where the inputs of attention come from: a model and layer, or `random`."""
    name = str(record["input"])
    captured = captured_from(name)
    return f"{captured[0]}, {captured[1]}, layer {captured[2]}" if captured else name


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
TTFT_COLUMNS: Columns = {
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
