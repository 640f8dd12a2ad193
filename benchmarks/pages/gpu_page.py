"""Reads the records of an NVIDIA GPU and writes the tables that the documentation shows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sample_attention import SampleAttentionConfig
from sample_attention.config import names_tuned
from sample_attention.lab.bench.tables import best_dense, coverage_shown, rule_of
from sample_attention.lab.records import BENCH, read_rows

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FOLDER = ROOT / "benchmarks" / "records"
PAGE = DOCS / "research" / "performance-gpu.md"
NOTHING = "Nothing measured yet: `make bench-gpu` makes the records."

NAMES = ("fa3", "fa4", "cudnn", "sdpa", "fa2")
"""Dense providers, about from the fastest to the slowest."""

GPUS = ("h100", "h200")
"""How the names of records begin."""

Row = dict[str, Any]
Columns = dict[str, Callable[[Row], str]]


def records(kind: str, folder: Path = FOLDER) -> list[Row]:
    """The latest record of each measurement in `<GPU>_<kind>.jsonl`; none without such files."""
    paths = [folder / f"{gpu}_{kind}.jsonl" for gpu in GPUS]
    rows = read_rows([path for path in paths if path.exists()], BENCH)
    return [split_input(row) for row in rows]


def split_input(row: Row) -> Row:
    """The row with the parts of `captured:model/text/layer` as fields of their own."""
    name = row.get("input", "")
    if not name.startswith("captured:"):
        return row
    model, text, layer = name.removeprefix("captured:").rsplit("/", 2)
    return row | {"model": model, "text": text, "layer": int(layer)}


def by_case(rows: list[Row]) -> list[Row]:
    """Means over the layers of a model, for each text, length and rule; the rows are in `group`."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.get("ms_total") is not None:
            case = (
                row.get("device"), input_of(row), row["seq_len"], row["heads"], row.get("routed"),
                row["backend"], rule_of(row), row["coverage"],
            )  # fmt: skip
            groups.setdefault(case, []).append(row)
    return sorted((mean_of(x) for x in groups.values()), key=lambda r: (r["seq_len"], input_of(r)))


def shown(rows: list[Row]) -> list[Row]:
    """Cases of `default`, `fast` and tuned rules, where the public call runs as it was measured."""
    presets = {name: SampleAttentionConfig.preset(name).coverage for name in ("default", "fast")}
    return [
        row for row in rows
        if (presets.get(rule_of(row)) == row["coverage"] or names_tuned(rule_of(row)))
        and (row.get("routed") or row["route"] == "sparse")
    ]  # fmt: skip


def in_summary(row: Row) -> bool:
    """Whether the README shows a case: what users are advised to take."""
    return not row.get("routed") and rule_of(row) != "fast"


def mean_of(group: list[Row]) -> Row:
    """The first row of a group with the means of its numbers; speed-ups are ratios of means."""
    means: Row = {}
    for name in ("density", "retained_mass_mean", "ms_select", "ms_attend", "ms_total"):
        values = [r.get(name) for r in group]
        means[name] = None if None in values else sum(values) / len(values)
    common = set.intersection(*(set(r["ms_dense"]) for r in group))
    dense = {x: sum(r["ms_dense"][x] for r in group) / len(group) for x in sorted(common)}
    means |= {"ms_dense": dense, "ms_fa3": dense.get("fa3"), "layers": len(group), "group": group}
    means["speedup"] = best_dense(means)[1] / means["ms_total"]
    return group[0] | means


def provenance(rows: list[Row]) -> str:
    """GPU, versions and commits of records, each named once."""
    versions = [row.get("versions") or {"torch": row["torch"]} for row in rows]
    shown = {
        name: distinct(v.get(name) for v in versions)
        for name in ("torch", "triton", "fa3-fwd", "flash-attn-4", "transformers")
    }
    commits = (str(row.get("commit") or "unknown") for row in rows)
    short = (c[:10] + "-dirty" * c.endswith("-dirty") for c in commits)
    where = [distinct(row["device"] for row in rows), distinct(row["dtype"] for row in rows)]
    found = [f"{name} {version}" for name, version in shown.items() if version]
    return ", ".join([*where, *found, f"commit {distinct(short)}"])


def card(row: Row) -> str:
    """The name of a GPU without its maker and its memory: H100, A100-SXM4-80GB."""
    return str(row["device"]).removeprefix("NVIDIA ").split()[0]


def distinct(values: Iterable[str | None]) -> str:
    """The values that there are, each once, in their order."""
    return " / ".join(dict.fromkeys(x for x in values if x))


def number(name: str, digits: int, unit: str = "") -> Callable[[Row], str]:
    """A cell with a number; a dash where there is none."""
    return lambda row: dash(row.get(name), digits, unit)


def dash(value: float | None, digits: int, unit: str = "") -> str:
    """The number, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}{unit}"


def fastest(row: Row) -> str:
    """The fastest dense provider and its time."""
    name, value = best_dense(row)
    return f"{value:,.2f} ({name})"


def input_of(row: Row) -> str:
    """Model and text, and whether the context was stretched; or how the input was made up."""
    if "model" not in row:
        return row["input"]
    yarn = f", YaRN {row['yarn']:g}" if row.get("yarn") else ""
    return f"{row['model']}, {row['text']}{yarn}"


def heads_of(row: Row) -> str:
    """Query and key/value heads."""
    return f"{row['heads']}/{row['kv_heads']}"


def dense_tflops(row: Row) -> float | None:
    """What FA3 reaches on all causal pairs."""
    fa3 = row["ms_dense"].get("fa3")
    pairs = row["batch"] * row["heads"] * row["seq_len"] * (row["seq_len"] + 1) / 2
    return fa3 and 4 * row["head_dim"] * pairs / fa3 / 1e9


TIMES: Columns = {
    "density": number("density", 3),
    "mass": number("retained_mass_mean", 3),
    "select (ms)": number("ms_select", 2),
    "attend (ms)": number("ms_attend", 2),
    "total (ms)": number("ms_total", 2),
    "FA3 (ms)": number("ms_fa3", 2),
    "fastest dense (ms)": fastest,
    "speed-up": number("speedup", 2, "×"),
}
WHOLE: Columns = {
    "input": input_of, "tokens": number("seq_len", 0), "heads": heads_of,
    "layers": number("layers", 0), "backend": lambda r: r["backend"], "preset": rule_of,
    "coverage": coverage_shown, **TIMES,
}  # fmt: skip
SUMMARY: Columns = {
    "input": input_of, "tokens": number("seq_len", 0), "preset": rule_of,
    "density": number("density", 3), "select (ms)": number("ms_select", 2),
    "total (ms)": number("ms_total", 2), "FA3 (ms)": number("ms_fa3", 2),
    "speed-up": number("speedup", 2, "×"),
}  # fmt: skip
ROUTED: Columns = {
    "input": input_of, "tokens": number("seq_len", 0), "ran": lambda r: r["route"], **TIMES,
}  # fmt: skip
ATTEND: Columns = {
    "tokens": number("seq_len", 0),
    "heads": heads_of,
    "backend": lambda r: r["backend"],
    "density": number("density", 3),
    "attend (ms)": number("ms_attend", 2),
    "TFLOP/s": number("attend_tflops", 0),
    "FA3 (ms)": lambda r: dash(r["ms_dense"].get("fa3"), 2),
    "FA3 TFLOP/s": lambda r: dash(dense_tflops(r), 0),
    "speed-up over FA3": number("attend_speedup_vs_fa3", 2, "×"),
}
DENSE: Columns = {
    "tokens": number("seq_len", 0),
    "heads": heads_of,
    **{name: lambda r, name=name: dash(r["ms_dense"].get(name), 2) for name in NAMES},
}
KERNELS: Columns = {
    "kernel": lambda r: " ".join(filter(None, (r["kernel"], r.get("provider")))).replace("_", " "),
    "tokens": number("seq_len", 0),
    "preset": rule_of,
    "coverage": coverage_shown,
    "launches": number("launches", 0),
    "time (ms)": number("ms", 3),
    "floor (ms)": number("floor_ms", 3),
    "bound by": lambda r: r["floor"] or "–",
    "times the floor": number("gap", 1),
    "of FA3": lambda r: dash(r["share_of_fa3"] and 100 * r["share_of_fa3"], 1, " %"),
    "host (ms)": number("host_ms", 2),
}
TTFT: Columns = {
    "model": input_of,
    "tokens": number("seq_len", 0),
    "attention": lambda r: " ".join(filter(None, (r["method"].replace("_", "-"), r.get("preset")))),
    "TTFT (ms)": number("ttft_ms", 1),
    "p20": number("ttft_ms_p20", 1),
    "p80": number("ttft_ms_p80", 1),
    "density": number("density", 3),
    "sparse layers": number("sparse_layers", 0),
    "same first token": lambda r: "yes" if r["same_first_token"] else "no",
    "next-token KL": number("next_token_kl", 4),
}


def table(rows: list[Row], columns: Columns) -> str:
    """Records as a Markdown table, with where they come from; where GPUs differ, rows say which."""
    if not rows:
        return NOTHING
    if len({row["device"] for row in rows}) > 1:
        columns = columns | {"GPU": card}
    lines = [list(columns), ["---"] + ["--:"] * (len(columns) - 1)]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{provenance([x for row in rows for x in row.get('group', [row])])}."


def gpu_tables(folder: Path = FOLDER) -> dict[str, str]:
    """The text between each pair of markers of the page."""
    attention, cases = records("attention", folder), by_case(records("attention", folder))
    listed = [r for r in attention if r["input"] == "random"]
    return {
        "summary": table([r for r in shown(cases) if in_summary(r)], SUMMARY),
        "whole": table([r for r in cases if not r.get("routed")], WHOLE),
        "routed": table([r for r in cases if r.get("routed")], ROUTED),
        "attend": table(sorted(listed, key=lambda r: (r["seq_len"], r["backend"])), ATTEND),
        "dense": table(records("dense", folder), DENSE),
        "kernels": table(records("kernels", folder), KERNELS),
        "ttft": table(records("ttft", folder), TTFT),
    }


def gpu_pages(texts: dict[Path, str], folder: Path = FOLDER) -> dict[Path, str]:
    """Pages by their texts, with the tables that they show as these should be."""
    texts = dict(texts)
    for name, body in gpu_tables(folder).items():
        start, end = f"<!-- gpu-{name}:start -->", f"<!-- gpu-{name}:end -->"
        for page, text in texts.items():
            head, mark, rest = text.partition(start)
            if mark:
                texts[page] = f"{head}{start}\n{body}\n{end}{rest.partition(end)[2]}"
    return texts
