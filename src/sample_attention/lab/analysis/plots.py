"""Pictures of what was kept: per layer and head, and of one head over its attention map.

Figures are drawn without pyplot, so that no global state of matplotlib is touched. At the default
resolution a figure is 1800 pixels wide and readable at 1200.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._extras import require
from ...plan import StripePlan
from ..capture import AttentionInputs
from .maps import HeadMap, head_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

WIDTH_INCHES = 12.0
DPI = 150
HEAD_INCHES = 4.9
ANNOTATED_LAYERS, ANNOTATED_HEADS = 36, 16
"""Largest heat map whose values are written into its cells."""

ZOOM_ROWS, ZOOM_KEYS = 384, 768
"""Pairs that the inset near the diagonal shows one by one."""

COLOURS = {"window": (0.27, 0.47, 0.67), "columns": (0.90, 0.40, 0.10), "dense": (0.0, 0.55, 0.45)}
"""Of kept pairs; told apart by people with any kind of colour vision."""

LABELS = {"window": "window: latest keys", "columns": "columns: chosen keys",
          "dense": "dense rows: all keys"}  # fmt: skip
DROPPED = (0.86, 0.86, 0.86)


@dataclass(frozen=True)
class Panel:
    """A value of every layer and head, ready to be drawn as a heat map.

    Attributes:
        values: fp64 `[L, H]`; NaN where nothing was measured.
        title: what the values are.
        unit: what their scale is.
        colours: name of a colour map of matplotlib.
        limits: ends of the scale.
    """

    values: Tensor
    title: str
    unit: str
    colours: str
    limits: tuple[float, float]

    @classmethod
    def density(cls, values: Tensor) -> Panel:
        """How much of the attention was computed."""
        title = "Share of the attention computed (density)"
        return cls(values, title, "computed pairs / causal pairs", "viridis", (0.0, 1.0))

    @classmethod
    def retained_mass(cls, values: Tensor, unit: str) -> Panel:
        """How much of the probability was kept on average; `unit` says over which rows."""
        title = "Probability kept by what is computed (retained mass)"
        return cls(values, title, unit, "cividis", (min(0.9, _floor(values)), 1.0))

    @classmethod
    def cra(cls, values: Tensor, unit: str) -> Panel:
        """How much was kept in the worst row; `unit` says of which rows."""
        title = "Probability kept in the worst row (CRA)"
        return cls(values, title, unit, "cividis", (min(0.9, _floor(values)), 1.0))

    @classmethod
    def sparsity_degree(cls, values: Tensor, coverage: float) -> Panel:
        """How much of the attention a method that knew all of it could drop."""
        title = f"Share that could be dropped at coverage {coverage:g} (sparsity degree, SD)"
        return cls(values, title, "droppable pairs / causal pairs", "magma", (_floor(values), 1.0))


@dataclass(frozen=True)
class HeadPicture:
    """One head, ready to be drawn.

    Attributes:
        title: which head it is, and its statistics.
        whole: all rows and keys.
        zoom: some rows near the middle of the prompt with the keys before them.
    """

    title: str
    whole: HeadMap
    zoom: HeadMap


def head_picture(inputs: AttentionInputs, plan: StripePlan, h: int, title: str) -> HeadPicture:
    """Read one head of the first sequence off its attention inputs and its plan."""
    _, _, q_len, _, kv_len = plan.sequences.rows()[0]
    middle = kv_len - q_len // 2
    rows = middle, min(kv_len, middle + ZOOM_ROWS)
    keys = max(0, rows[1] - ZOOM_KEYS), rows[1]
    parts = inputs.q, inputs.k, plan, h
    whole = head_map(*parts, scale=inputs.scale)
    zoom = head_map(*parts, rows=rows, keys=keys, cells=ZOOM_KEYS, scale=inputs.scale)
    return HeadPicture(title, whole, zoom)


def draw_report(
    title: str, summary: str, layers: Sequence[int], panels: Sequence[Panel],
    head: HeadPicture | None = None,
) -> Figure:  # fmt: skip
    """Heat maps over layers and heads, and one head's plan over its attention.

    Args:
        title: what was run.
        summary: what came out, in a line or two.
        layers: indices of the layers, L of them.
        panels: one below the other, at least one.
        head: what to draw below; None: nothing.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    map_height = min(6.0, max(1.9, 0.9 + 0.21 * panels[0].values.shape[1]))
    heights = [1.0, *[map_height] * len(panels), *([HEAD_INCHES] if head is not None else [])]
    figure = _figure(sum(heights))
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    _write_heading(parts[0], title, summary)
    for part, panel in zip(parts[1:], panels, strict=False):  # the head has a part of its own
        _draw_panel(part, layers, panel)
    if head is not None:
        _draw_head(parts[-1], head)
    return figure


def draw_head(head: HeadPicture) -> Figure:
    """One head's attention map, its plan over it, and both near the diagonal.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure = _figure(HEAD_INCHES)
    part: Any = figure.subfigures(1, 1)
    _draw_head(part, head)
    return figure


def _figure(height: float) -> Figure:
    module: Any = require("matplotlib.figure", "plot")
    return module.Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor="white")


def _write_heading(part: SubFigure, title: str, summary: str) -> None:
    part.text(0.02, 0.86, title, fontsize=15, weight="bold", va="top")
    part.text(0.02, 0.42, summary, fontsize=10.5, va="top", linespacing=1.4)


def _floor(values: Tensor) -> float:
    """The lowest value, rounded down to a twentieth."""
    return int(float(values.nan_to_num(nan=1.0).min()) * 20) / 20


def _draw_panel(part: SubFigure, layers: Sequence[int], panel: Panel) -> None:
    axes: Axes = part.add_axes((0.05, 0.22, 0.86, 0.66))
    grid = panel.values.T.double().cpu()
    image = axes.imshow(
        grid.numpy(), aspect="auto", cmap=panel.colours, vmin=panel.limits[0],
        vmax=panel.limits[1], interpolation="nearest",
    )  # fmt: skip
    heads, count = grid.shape
    axes.set_title(panel.title, fontsize=11, loc="left", weight="bold")
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("head", fontsize=9)
    step = max(1, count // ANNOTATED_LAYERS)
    axes.set_xticks(range(0, count, step), [str(layers[i]) for i in range(0, count, step)])
    axes.set_yticks(range(0, heads, max(1, heads // 8)))
    axes.tick_params(labelsize=8, length=2)
    if count <= ANNOTATED_LAYERS and heads <= ANNOTATED_HEADS:
        middle = sum(panel.limits) / 2
        for h in range(heads):
            for i in range(count):
                value = float(grid[h, i])
                text = "–" if value != value else f"{value:.2f}".removeprefix("0")  # noqa: PLR0124
                shade = "white" if value < middle else "black"
                axes.text(i, h, text, ha="center", va="center", fontsize=7.5, color=shade)
    bar = part.colorbar(image, cax=part.add_axes((0.925, 0.22, 0.012, 0.66)))
    bar.set_label(panel.unit, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _draw_head(part: SubFigure, head: HeadPicture) -> None:
    patches: Any = require("matplotlib.patches", "plot")
    part.text(0.05, 0.985, head.title, fontsize=11, weight="bold", va="top")
    places = [(0.06, 0.12, 0.24, 0.67), (0.405, 0.12, 0.24, 0.67), (0.705, 0.12, 0.275, 0.67)]
    attention, plan, zoom = (part.add_axes(place) for place in places)
    image = attention.imshow(
        _logarithm(head.whole).numpy(), extent=_extent(head.whole), aspect="auto",
        interpolation="nearest", cmap="magma", vmin=-5, vmax=0,
    )  # fmt: skip
    _label(attention, "Attention: largest probability per cell")
    bar = part.colorbar(image, cax=part.add_axes((0.306, 0.12, 0.008, 0.67)))
    bar.set_ticks([-5, -4, -3, -2, -1, 0], labels=["1e-5", "1e-4", "1e-3", "0.01", "0.1", "1"])
    bar.ax.tick_params(labelsize=7)
    for axes, grid in ((plan, head.whole), (zoom, head.zoom)):
        axes.imshow(
            _paint(grid).numpy(), extent=_extent(grid), aspect="auto", interpolation="nearest"
        )
    _label(plan, "What is computed of it")
    _label(zoom, "The framed part; darker: more attention")
    (x0, x1), (y0, y1) = head.zoom.keys, head.zoom.rows
    for axes in (attention, plan):
        axes.add_patch(patches.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=1.0, ec="black"
                                         if axes is plan else "white"))  # fmt: skip
    shown = {name: colour for name, colour in COLOURS.items()
             if float(getattr(head.whole, name).max()) > 0}  # fmt: skip
    handles = [patches.Patch(color=colour, label=LABELS[name]) for name, colour in shown.items()]
    handles.append(patches.Patch(color=DROPPED, label="skipped"))
    part.legend(handles=handles, loc="upper left", ncols=len(handles), fontsize=9, frameon=False,
                bbox_to_anchor=(0.045, 0.945))  # fmt: skip


def _extent(grid: HeadMap) -> tuple[int, int, int, int]:
    return (grid.keys[0], grid.keys[1], grid.rows[1], grid.rows[0])


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set_xlabel("key position (token)", fontsize=9)
    axes.set_ylabel("query position (token)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=5)


def _logarithm(grid: HeadMap) -> Tensor:
    """Decimal logarithm, NaN (drawn as nothing) where no pair is causal."""
    value = grid.probability.clamp(min=1e-5).log10()
    return value.masked_fill(grid.causal == 0, torch.nan)


def _paint(grid: HeadMap) -> Tensor:
    """Kept pairs in their colours, dropped ones grey, each darker where attention is larger."""
    dropped = torch.tensor(DROPPED, device="cpu")
    picture = dropped.expand(*grid.causal.shape, 3).clone()
    for name, colour in COLOURS.items():
        share = getattr(grid, name)[..., None].sqrt()  # a few columns in a cell still show
        picture = picture * (1 - share) + torch.tensor(colour, device="cpu") * share
    level = (grid.probability.clamp(min=1e-5).log10() / 5 + 1)[..., None]
    picture = picture * (1.15 - 0.65 * level).clamp(max=1.0)
    visible = grid.causal[..., None]
    return picture * visible + (1 - visible)
