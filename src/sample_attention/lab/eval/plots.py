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
from ..statistics import Estimate
from .groups import Group, groups_of, most_in_common, share_of_dense

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEEDLE = "needle"
BANDS = 5
"""Depths that are shown together: numbers of prompts differ, and with them their depths."""

COMPARED = 3
"""Methods that make a panel worth more than its table."""

ACCURACY_INCHES = 6.4, 4.6
NEEDLE_INCHES = 3.3, 2.7
"""Width and height of a panel."""

Point = tuple[float, Estimate]
"""Density, and the percentage of dense's score."""


def draw_accuracy(rows: Sequence[Record]) -> Figure | None:
    """Score against density, a panel per model and length, a line per method over its settings.

    Bars are intervals of 95 % over resampled prompts. Where some panels compare three methods or
    more, those with fewer are left out.

    Returns:
        None where no sparse method was measured.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    groups = [group for group in groups_of(rows) if _points(group)]
    groups = [group for group in groups if len(_points(group)) >= COMPARED] or groups
    if not groups:
        return None
    across, down = min(len(groups), 2), -(-len(groups) // 2)
    figure = _figure(across, down, ACCURACY_INCHES)
    axes = [figure.add_subplot(down, across, i + 1) for i in range(len(groups))]
    names = list(dict.fromkeys(name for group in groups for name in _points(group)))
    for axis, group in zip(axes, groups, strict=True):
        _draw_curves(axis, group, names)
    return figure


def draw_needles(rows: Sequence[Record]) -> Figure | None:
    """Right answers of all prompts by length and depth, a row per model, a panel per method.

    Returns:
        None where the needle grid was not measured.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    panels: dict[str, dict[str, dict[int, Record]]] = {}
    for group in groups_of(rows):
        found = group.tasks.get(NEEDLE, {})
        for label in sorted(found, key=lambda label: (label != DENSE, label)):
            if "depths" in (row := found[label]):
                panels.setdefault(row["model"], {}).setdefault(label, {})[group.length] = row
    if not panels:
        return None
    columns = max(map(len, panels.values()))
    figure = _figure(columns, len(panels), NEEDLE_INCHES)
    for i, (model, methods) in enumerate(panels.items()):
        for j, (label, cells) in enumerate(methods.items()):
            axis = figure.add_subplot(len(panels), columns, i * columns + j + 1)
            _draw_grid(axis, f"{model}\n{label.partition(':')[0]}", cells)
            if j:
                axis.set_ylabel("")
                axis.set_yticklabels([])
    return figure


def _figure(columns: int, rows: int, inches: tuple[float, float]) -> Figure:
    """An empty figure with room for so many panels."""
    module: Any = require("matplotlib.figure", "plot")
    size = inches[0] * columns, inches[1] * rows
    figure: Figure = module.Figure(figsize=size, dpi=150, layout="constrained")
    return figure


def _points(group: Group) -> dict[str, list[Point]]:
    """By method, the density and the percentage of dense's score of each of its settings.

    On tasks that most of them ran; the others are not among them.
    """
    found: dict[str, list[Point]] = {}
    pairs = {label: group.pairs(label) for label in group.methods if label != DENSE}
    labels, tasks = most_in_common({label: x for label, x in pairs.items() if x})
    for label in labels:
        both = [pairs[label][task] for task in tasks]
        share = share_of_dense(both)
        if share is not None:
            point = mean(row["density"] for row, _ in both), Estimate(*(100 * x for x in share))
            found.setdefault(label.partition(":")[0], []).append(point)
    return found


def _draw_curves(axis: Axes, group: Group, names: Sequence[str]) -> None:
    for name, points in _points(group).items():
        i = names.index(name)
        x, y = zip(*sorted(points), strict=True)
        colour, marker = LINE_COLOURS[i % len(LINE_COLOURS)], LINE_MARKERS[i % len(LINE_MARKERS)]
        means = [share.mean for share in y]
        axis.plot(x, means, lw=2, label=name, color=colour, marker=marker)
        ends = [share.mean - share.low for share in y], [share.high - share.mean for share in y]
        axis.errorbar(x, means, ends, ls="", color=colour, lw=1.2, capsize=3, alpha=0.7)
    axis.axhline(100, color="#22262e", lw=1)
    axis.axhline(99, color="#8a8f98", lw=1, ls=":")
    axis.set(
        xlabel="density (computed pairs / causal pairs)",
        ylabel="score, % of dense (95 % interval)",
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
            scores = [x for x, b in zip(row["scores"], bands, strict=True) if b == band]
            grid[band, i] = mean(scores)
            shade = "white" if mean(scores) < 0.5 else "black"
            text = f"{sum(scores):g}/{len(scores)}"
            axis.text(i, band, text, ha="center", va="center", fontsize=8, color=shade)
    axis.imshow(grid.numpy(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axis.set_title(title, fontsize=9)
    axis.set_xticks(range(len(lengths)), [f"{n / 1024:g}K" for n in lengths])
    edges = [f"{100 * i / BANDS:.0f}–{100 * (i + 1) / BANDS:.0f} %" for i in range(BANDS)]
    axis.set_yticks(range(BANDS), edges)
    axis.set(xlabel="prompt length (tokens)", ylabel="depth of the needle")
