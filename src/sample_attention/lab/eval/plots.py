"""Rows as pictures: accuracy against density per method, and needle heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from ..._extras import require
from ..contenders import DENSE
from ..pictures import LINE_COLOURS, LINE_MARKERS
from ..records import Record
from .groups import Group, groups_of, most_in_common, share_of_dense

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEEDLE = "needle"
BANDS = 5
"""Depths that are shown together: numbers of prompts differ, and with them their depths."""

COMPARED = 3
"""Methods that make a panel worth more than its table."""

PANEL_INCHES = 4.2
"""Height of a panel."""


def draw_accuracy(rows: Sequence[Record]) -> Figure | None:
    """Score against density, a panel per model and length, a line per method over its settings.

    Where some panels compare three methods or more, those with fewer are left out.

    Returns:
        None where no sparse method was measured.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    groups = [group for group in groups_of(rows) if _points(group)]
    groups = [group for group in groups if len(_points(group)) >= COMPARED] or groups
    if not groups:
        return None
    figure, axes = _panels(len(groups), 2, 1.4)
    names = list(dict.fromkeys(name for group in groups for name in _points(group)))
    for axis, group in zip(axes, groups, strict=True):
        _draw_curves(axis, group, names)
    return figure


def draw_needles(rows: Sequence[Record]) -> Figure | None:
    """Right answers by length and depth, a panel per model and method.

    Returns:
        None where the needle grid was not measured.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    panels: dict[str, dict[int, Record]] = {}
    for group in groups_of(rows):
        needles = group.tasks.get(NEEDLE, {})
        for label in sorted(needles, key=lambda label: label != DENSE):
            if "depths" in needles[label]:
                title = f"{needles[label]['model']}\n{label}"
                panels.setdefault(title, {})[group.length] = needles[label]
    if not panels:
        return None
    figure, axes = _panels(len(panels), 5, 0.7)
    for axis, (title, cells) in zip(axes, panels.items(), strict=True):
        _draw_grid(axis, title, cells)
    return figure


def _panels(count: int, per_row: int, aspect: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes in rows, each `aspect` times as wide as high."""
    module: Any = require("matplotlib.figure", "plot")
    columns, rows = min(count, per_row), -(-count // per_row)
    size = aspect * PANEL_INCHES * columns, PANEL_INCHES * rows
    figure: Figure = module.Figure(figsize=size, dpi=150, layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _points(group: Group) -> dict[str, list[tuple[float, float]]]:
    """By method, the density and the percentage of dense's score of each of its settings.

    On tasks that most of them ran; the others are not among them.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    pairs = {label: group.pairs(label) for label in group.methods if label != DENSE}
    labels, tasks = most_in_common({label: x for label, x in pairs.items() if x})
    for label in labels:
        both = [pairs[label][task] for task in tasks]
        share = share_of_dense(both)
        if share is not None:
            point = mean(row["density"] for row, _ in both), 100 * share.mean
            points.setdefault(label.partition(":")[0], []).append(point)
    return points


def _draw_curves(axis: Axes, group: Group, names: Sequence[str]) -> None:
    for name, points in _points(group).items():
        i = names.index(name)
        x, y = zip(*sorted(points), strict=True)
        colour, marker = LINE_COLOURS[i % len(LINE_COLOURS)], LINE_MARKERS[i % len(LINE_MARKERS)]
        axis.plot(x, y, lw=2, label=name, color=colour, marker=marker)
    axis.axhline(100, color="#22262e", lw=1)
    axis.axhline(99, color="#8a8f98", lw=1, ls=":")
    axis.set(
        xlabel="density (computed pairs / causal pairs)", ylabel="score, % of dense",
        title=f"{group.model}, {group.length:,} tokens", xlim=(0, 1.05 * axis.get_xlim()[1]),
    )  # fmt: skip
    axis.grid(color="#e3e5e9")
    axis.legend(frameon=False, fontsize=8)


def _draw_grid(axis: Axes, title: str, cells: dict[int, Record]) -> None:
    lengths = sorted(cells)
    grid = torch.full((BANDS, len(lengths)), torch.nan, device="cpu")
    for i, length in enumerate(lengths):
        row = cells[length]
        bands = [min(int(BANDS * depth), BANDS - 1) for depth in row["depths"]]
        for band in set(bands):
            at = zip(bands, row["scores"], strict=True)
            grid[band, i] = mean(score for b, score in at if b == band)
    axis.imshow(grid.numpy(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for i, j in grid.isfinite().nonzero().tolist():
        value = float(grid[i, j])
        shade = "white" if value < 0.5 else "black"
        axis.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=8, color=shade)
    axis.set_title(title, fontsize=9)
    axis.set_xticks(range(len(lengths)), [f"{n / 1024:g}K" for n in lengths])
    edges = [f"{100 * i / BANDS:.0f}–{100 * (i + 1) / BANDS:.0f} %" for i in range(BANDS)]
    axis.set_yticks(range(BANDS), edges)
    axis.set(xlabel="prompt length (tokens)", ylabel="depth of the needle")
