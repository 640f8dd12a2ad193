"""Pictures of records: speed-ups by length, and what evaluations found."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

import matplotlib.pyplot as plt
from cpu_page import NO_RECORDS, by_length, read_records
from cpu_page import provenance as cpu_provenance
from evaluation_pages import PICTURES, read_evaluation
from gpu_page import NOTHING, best_dense, by_case, provenance, records, rule_of, shown
from look import BLUE, GREEN, INK, ORANGE, PURPLE, RED, SKY, save

TEXTS = {"python-reference": "prose", "python-stdlib": "code"}
LOOKS = tuple(zip((BLUE, RED, GREEN, PURPLE, ORANGE, SKY), "os^Dv<", strict=True))
APART = 2**0.06
"""Between points of two lines at the same length, which would hide each other."""

LABELLED = 1.05
"""Speed-ups below this are not written beside their points: the axis shows them."""


class Point(NamedTuple):
    """A prompt length, and the speed-up of each measured layer and of their mean."""

    length: int
    speedup: float
    layers: list[float]


def draw_speedup() -> None:
    """Speed-up over dense attention against the length of the prompt, from the records."""
    lines: dict[str, list[Point]] = {}
    rows = by_length(read_records())
    for row in rows:
        point = Point(row["seq_len"], row["speedup"], [r["speedup"] for r in row["group"]])
        lines.setdefault(f"{row['model']}, {row['preset']}", []).append(point)
    title = f"Attention on a CPU against dense SDPA\n{cpu_provenance(rows)}"
    _draw(lines, title, "cpu_speedup.svg", NO_RECORDS)


def draw_gpu_speedup() -> None:
    """Speed-up on an NVIDIA GPU over its fastest dense attention, selection included."""
    lines: dict[str, list[Point]] = {}
    rows = shown(by_case(records("attention")))
    for row in rows:
        chosen = "short: runs dense" if row.get("routed") else rule_of(row)
        layers = [best_dense(r)[1] / r["ms_total"] for r in row["group"]]
        name = f"{TEXTS.get(row['text'], row['text'])}, {chosen}"
        lines.setdefault(name, []).append(Point(row["seq_len"], row["speedup"], layers))
    facts = textwrap.fill(provenance([x for row in rows for x in row["group"]]), 90)
    title = f"Attention on a GPU against the fastest dense provider\n{facts}"
    _draw(lines, title, "gpu_speedup.svg", NOTHING)


def _draw(lines: dict[str, list[Point]], title: str, name: str, nothing: str) -> None:
    figure, axis = plt.subplots(figsize=(8, 5.6), layout="constrained")
    if lines:
        _draw_lines(axis, lines)
        axis.set_title(title, fontsize=9)
    else:
        axis.text(0.5, 0.5, nothing.replace("`", ""), ha="center", transform=axis.transAxes)
        axis.set_axis_off()
    save(figure, name)


def _draw_lines(axis: plt.Axes, lines: dict[str, list[Point]]) -> None:
    axis.axhline(1, color=INK, lw=1)
    at = axis.get_yaxis_transform()
    axis.text(0.995, 0.97, "dense attention", ha="right", va="top", transform=at, fontsize=10)
    groups: dict[int, list[Point]] = {}
    for points in lines.values():
        for p in points:
            groups.setdefault(p.length, []).append(p)
    for (name, points), (colour, marker) in zip(lines.items(), LOOKS, strict=False):
        beside = [groups[p.length] for p in points]
        middles = [
            group.index(p) - (len(group) - 1) / 2 for p, group in zip(points, beside, strict=True)
        ]
        x = [p.length * APART**shift for p, shift in zip(points, middles, strict=True)]
        y = [p.speedup for p in points]
        axis.plot(x, y, color=colour, marker=marker, lw=2, ms=7, label=name)
        bars = (
            [p.speedup - min(p.layers) for p in points],
            [max(p.layers) - p.speedup for p in points],
        )
        axis.errorbar(x, y, bars, ls="", color=colour, lw=1.2, capsize=3, alpha=0.7)
        for p, group, place in zip(points, beside, x, strict=True):
            _label(axis, p, place, group[group.index(p) + 1 :], p is points[-1])
    ticks = [n for n in sorted(groups) if n & (n - 1) == 0]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{n // 1024}K" if n >= 1024 else str(n) for n in ticks])
    axis.minorticks_off()
    axis.set_xlim(min(groups) / 1.3, max(groups) * 1.6)
    axis.set_ylim(0, 1.1 * max(max(p.layers) for group in groups.values() for p in group))
    axis.set(xlabel="prompt length (tokens)", ylabel="speed-up, selection included")
    axis.grid(axis="y")
    axis.legend(loc="upper left", fontsize=9, title="points: mean of layers; bars: all layers")


def _label(axis: plt.Axes, p: Point, x: float, to_the_right: list[Point], last: bool) -> None:
    """Write a speed-up to the right of its point, or to the upper left where that is taken."""
    if p.speedup < LABELLED:
        return
    free = last and not any(min(r.layers) <= p.speedup <= max(r.layers) for r in to_the_right)
    axis.annotate(
        f"{p.speedup:.1f}×", (x, p.speedup), (8, 0) if free else (-6, 4),
        textcoords="offset points", ha="left" if free else "right",
        va="center" if free else "bottom", fontsize=10, zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
    )  # fmt: skip


def draw_evaluation() -> None:
    """Accuracy against density, and needle heat maps, where they were measured."""
    rows = read_evaluation()
    for name, draw in PICTURES.items():
        figure = draw(rows)
        if figure is not None:
            save(figure, name)
