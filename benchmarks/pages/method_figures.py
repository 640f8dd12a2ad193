"""Pictures of the method: masks, one segment, and window edges, all computed by the library."""

from __future__ import annotations

import dataclasses
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from look import BLUE, GREEN, GREY, INK, ORANGE, RED, save
from torch import Tensor

from sample_attention import Sequences, StripePlan, preset, reference, select
from sample_attention.selection.eager.column_mass import GroupRows, ScoreBuffer, column_mass
from sample_attention.selection.rows import held_out_rows, strided_rows

SEQ_LEN = 4096
"""Tokens of the made-up head that the pictures show."""


def structured_head() -> tuple[Tensor, Tensor]:
    """The q and k `[SEQ_LEN, 64]` of a head that has what real heads have.

    A sink at key 0, attention that falls with distance, a slash at distance 1,280, a handful of
    columns that every row looks for, and runs of columns that the rows of one passage look for.
    """
    generator = torch.Generator().manual_seed(6)
    position = torch.arange(SEQ_LEN)[:, None]
    waves = torch.logspace(math.log10(1 / 2), math.log10(1 / 300), 20)
    q = 0.5 * torch.randn(SEQ_LEN, 64, generator=generator)
    k = 0.5 * torch.randn(SEQ_LEN, 64, generator=generator)
    near, slash = position * waves, (position - 1280) * waves
    turn = torch.cat([near.cos(), near.sin()], 1)
    q[:, :40] += 2.1 * turn + 1.8 * torch.cat([slash.cos(), slash.sin()], 1)
    k[:, :40] += 1.9 * turn
    q[:, 40] += 4
    k[0, 40] = 18
    k[[170, 700, 1500], 40] = 15
    for topic in range(8):
        passage = slice(512 * topic, 512 * (topic + 1))
        q[passage, 41 + topic] += 5
        for share in (0.3, 0.8):
            start = int(share * 512 * topic) + 30 * topic
            k[start : start + 16, 41 + topic] = 10 + 3 * torch.rand(16, generator=generator)
    return q, k


# --- masks -----------------------------------------------------------------------------------


def draw_masks() -> None:
    """The attention of one head, and what three presets keep of it."""
    q, k = structured_head()
    prob = reference.probabilities(q[None], k[None])[0]
    figure, axes = plt.subplots(2, 2, figsize=(8, 8.6), layout="constrained")
    cells = _cells(prob.numpy())
    shown = np.ma.masked_where(~np.tri(len(cells), dtype=bool), np.log10(cells + 1e-12))
    image = axes[0, 0].imshow(
        shown, cmap=mpl.colormaps["cividis"].resampled(24), vmin=-6, vmax=-1.5, extent=_extent()
    )
    bar = figure.colorbar(image, ax=axes[0, 0], shrink=0.55, ticks=[-6, -4, -2], pad=0.02)
    bar.ax.set_yticklabels(["$10^{-6}$", "$10^{-4}$", "$10^{-2}$"])
    bar.outline.set_visible(False)
    axes[0, 0].set_title("dense attention\nmass of each pair")
    for axis, name in zip(axes.flat[1:], ("default", "paper", "mlsys"), strict=True):
        plan = select(q[None, None], k[None, None], name)
        axis.imshow(_coloured(plan), extent=_extent())
        mass = (prob * plan.to_dense(0, 0)).sum(-1).mean()
        density = float(plan.density().mean())
        axis.set_title(f"{name}\ndensity {density:.2f} · retained mass {mass:.2f}")
    for axis in axes.flat:
        axis.set_xticks(range(0, SEQ_LEN + 1, 1024))
        axis.set_yticks(range(0, SEQ_LEN + 1, 1024))
        axis.set(xlabel="key position", ylabel="query position")
    swatches = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (ORANGE, BLUE, GREEN)]
    labels = ["columns (mlsys: columns and slashes)", "window", "dense rows"]
    figure.legend(swatches, labels, loc="outside lower center", ncols=3, fontsize=11)
    save(figure, "masks.png")


def _extent() -> tuple[int, int, int, int]:
    return (0, SEQ_LEN, SEQ_LEN, 0)


def _cells(values: np.ndarray, size: int = 512) -> np.ndarray:
    """Means over square cells: `[size, size]`."""
    step = len(values) // size
    return values.reshape(size, step, size, step).mean((1, 3))


def _coloured(plan: StripePlan) -> np.ndarray:
    """RGB cells: why pairs are computed gives the colour, how many of them the strength."""
    none = torch.zeros_like(plan.counts)
    sparse = torch.zeros_like(plan.dense)
    window = dataclasses.replace(plan, counts=none, dense=sparse, dense_tail=0).to_dense(0, 0)
    rest = dataclasses.replace(plan, counts=none).to_dense(0, 0) & ~window
    listed = plan.to_dense(0, 0) & ~window & ~rest
    paint = np.ones((512, 512, 3))
    paint[~np.tri(512, dtype=bool)] = 0.965
    for colour, mask in ((BLUE, window), (GREEN, rest), (ORANGE, listed)):
        share = np.sqrt(_cells(mask.numpy().astype(np.float32)))[..., None]
        paint = paint * (1 - share) + np.array(mpl.colors.to_rgb(colour)) * share
    return paint


# --- how a segment is selected ---------------------------------------------------------------


def draw_segment() -> None:
    """Stage 1 and 2 for one segment: ranks, and how many columns the coverage takes."""
    q, k = structured_head()
    config = preset("default", held_out_rows=16)
    plan = select(q[None, None], k[None, None], config)
    g = 26
    lo, hi, edge = g * 128, (g + 1) * 128, g * 128 - config.window + 1
    kept = plan.columns(0, 0, g).long()
    head = GroupRows(q[None], k, range(1), 0, q.shape[1] ** -0.5, ScoreBuffer(q))

    def mass_of(rows: Tensor) -> Tensor:
        return column_mass(head.softmax(rows), torch.full((len(rows),), edge), 1, edge)[0, 0][order]

    rank = reference.rank_exponent(q[lo:hi], k[:edge], edge).softmax(-1)
    order = rank.argsort(descending=True, stable=True)
    sampled, held = strided_rows(lo, hi, config.sample_stride), held_out_rows(lo, hi, config)
    curves = {
        f"{len(sampled)} sampled rows, which decide": mass_of(sampled),
        f"{len(held)} held-out rows, which check": mass_of(held),
    }
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7.6), layout="constrained")
    _draw_ranks(top, rank, kept, (edge, lo, hi))
    held_to = 1 - (1 - config.coverage) * math.sqrt(
        min(1, edge / (config.budget.tighten_below or 1))
    )
    by_rank = int((1 - mass_of(sampled).sum() + mass_of(sampled).cumsum(0) < held_to).sum()) + 1
    _draw_counts(bottom, curves, (by_rank, len(kept)), held_to)
    save(figure, "segment.png")


def _draw_ranks(axis: plt.Axes, rank: Tensor, kept: Tensor, at: tuple[int, int, int]) -> None:
    edge, lo, hi = at
    dropped = torch.ones(len(rank), dtype=torch.bool)
    dropped[kept] = False
    axis.scatter(dropped.nonzero()[:, 0], rank[dropped], s=3, color=GREY, label="dropped columns")
    axis.scatter(kept, rank[kept], s=12, color=ORANGE, label=f"kept columns ({len(kept)})")
    axis.axvspan(edge, hi, color=BLUE, alpha=0.18, lw=0, label="window: always kept")
    axis.set(
        yscale="log", ylim=(1e-6, 20), xlim=(-40, hi + 40), xlabel="key position",
        ylabel="rank (share of all)",
        title=f"Which columns: query moments rank them (rows {lo:,} to {hi - 1:,})",
    )  # fmt: skip
    axis.set_yticks([10.0**-i for i in range(7)])
    axis.grid(axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(0.02, 1), ncols=3, columnspacing=1)


def _draw_counts(
    axis: plt.Axes, curves: dict[str, Tensor], counts: tuple[int, int], coverage: float
) -> None:
    by_rank, kept_columns = counts
    most = 2 * kept_columns
    looks = ((BLUE, "-"), (RED, "--"))
    for (label, mass), (colour, line) in zip(curves.items(), looks, strict=True):
        kept = 1 - mass.sum() + torch.cat([mass.new_zeros(1), mass.cumsum(0)])
        axis.plot(kept[: most + 1], color=colour, ls=line, lw=2, label=label)
    start = float(1 - next(iter(curves.values())).sum())
    axis.axhline(coverage, color=INK, lw=1)
    axis.annotate(
        f"coverage of this segment: {coverage:.3f}", (0.62 * most, coverage),
        (0.62 * most, coverage - 0.12), arrowprops={"arrowstyle": "-", "color": INK}, va="top",
    )  # fmt: skip
    axis.axvline(by_rank, color=ORANGE, lw=2, label=f"{by_rank} columns reach it")
    axis.annotate(
        f"the window alone\nholds {start:.2f}", (0, start), (0.06 * most, start + 0.05),
        arrowprops={"arrowstyle": "-", "color": INK}, va="center",
    )  # fmt: skip
    axis.set(
        xlim=(0, most),
        ylim=(start - 0.06, 1.03),
        ylabel="mean retained mass",
        xlabel="columns kept, by falling rank",
        title=f"How many: until window and columns reach the coverage ({kept_columns} with peaks)",
    )
    axis.grid(axis="y")
    axis.legend(loc="lower right")


# --- alignment of segments and windows -------------------------------------------------------


def draw_alignment() -> None:
    """The same lists with a window edge per row and with edges aligned to segments."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.7), layout="constrained", sharey=True)
    titles = "an edge for every row", "an edge for every segment (default)"
    for axis, align, title in zip(axes, (1, 16), titles, strict=True):
        plan = _small_plan(align)
        lists = plan.to_dense(0, 0)
        none = torch.zeros_like(plan.counts)
        window = dataclasses.replace(plan, counts=none).to_dense(0, 0)
        colours = ["white", "#eef0f2", BLUE, ORANGE]
        kind = torch.ones(80, 80).tril() + window.float() + 2 * (lists & ~window).float()
        axis.imshow(kind, cmap=mpl.colors.ListedColormap(colours), vmin=0, vmax=3)
        for edge in range(0, 81, 16):
            axis.axhline(edge - 0.5, color=INK, lw=0.8, ls=":")
        axis.set(title=title, xlabel="key position")
        axis.set_xticks([x - 0.5 for x in range(0, 81, 16)], range(0, 81, 16))
        axis.set_yticks([x - 0.5 for x in range(0, 81, 16)], range(0, 81, 16))
    axes[0].set_ylabel("query position")
    swatches = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (BLUE, ORANGE)]
    swatches.append(plt.Line2D([], [], color=INK, lw=0.8, ls=":"))
    figure.legend(swatches, ["window", "columns", "segments"], loc="outside lower center", ncols=3)
    save(figure, "alignment.png")


def _small_plan(align: int) -> StripePlan:
    """Eighty rows in segments of 16 with a window of 24 and the same columns for any alignment."""
    lists = [[], [0], [0, 5, 17], [0, 5, 17, 30], [0, 9, 17, 30, 38]]
    counts = torch.tensor([[[len(x) for x in lists]]], dtype=torch.int32)
    return StripePlan(
        indices=torch.tensor([j for x in lists for j in x], dtype=torch.int32),
        offsets=(counts.long().cumsum(-1) - counts),
        counts=counts,
        dense=torch.zeros(1, 1, len(lists), dtype=torch.bool),
        sequences=Sequences.left_padded(torch.tensor([80]), 80, 80),
        segment=16,
        window=torch.tensor([24], dtype=torch.int32),
        window_alignment=align,
    )
