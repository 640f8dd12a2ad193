"""Draws the pictures of the documentation and writes the tables that come from records.

    python docs/make_figures.py            draw and write everything
    python docs/make_figures.py --check    write nothing; exit 1 when a table is not up to date

Every mask and every curve is computed by the library; matplotlib only puts it on paper.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import sys
import textwrap
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from architecture_records import tables as architecture_pages
from cpu_records import NO_RECORDS, Row, by_length, provenance, read_records, tables
from eval_records import PICTURES, read_evaluation
from eval_records import tables as evaluation_pages
from gpu_records import NOTHING, by_case, gpu_pages, records, rule_of, shown
from gpu_records import PAGE as GPU_PAGE
from gpu_records import provenance as gpu_provenance
from PIL import Image
from torch import Tensor
from tuned_files import tables as tuned_pages
from version_records import tables as version_pages

from sample_attention import Sequences, StripePlan, preset, reference, select
from sample_attention.selection.eager.column_mass import GroupRows, ScoreBuffer, column_mass
from sample_attention.selection.rows import held_out_rows, strided_rows

DOCS = Path(__file__).resolve().parent
README = Path(__file__).resolve().parents[1] / "README.md"
FIGURES = DOCS / "figures"

# The palette of Okabe and Ito, which people with any kind of colour vision can tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8a8f98", "#22262e"

SEQ_LEN = 4096
"""Tokens of the made-up head that the pictures show."""


def style() -> None:
    """One look for all pictures, and files that come out the same every time."""
    mpl.use("Agg")
    plt.rcParams.update({
        "font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "figure.dpi": 150,
        "figure.facecolor": "white", "savefig.facecolor": "white", "text.color": INK,
        "axes.edgecolor": GREY, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "grid.color": "#e3e5e9", "legend.frameon": False, "svg.hashsalt": "sample-attention",
    })  # fmt: skip


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture and forget it: no date, and in a PNG the colours that suffice."""
    path = FIGURES / name
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None})
    else:
        memory = io.BytesIO()
        figure.savefig(memory)
        Image.open(memory).convert("RGB").quantize(224, Image.Quantize.MAXCOVERAGE).save(
            path, optimize=True
        )
    plt.close(figure)


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
    _draw_counts(bottom, curves, len(kept), config.coverage)
    save(figure, "segment.png")


def _draw_ranks(axis: plt.Axes, rank: Tensor, kept: Tensor, at: tuple[int, int, int]) -> None:
    edge, lo, hi = at
    dropped = torch.ones(len(rank), dtype=torch.bool)
    dropped[kept] = False
    axis.scatter(dropped.nonzero()[:, 0], rank[dropped], s=3, color=GREY, label="dropped columns")
    axis.scatter(kept, rank[kept], s=12, color=ORANGE, label=f"kept columns ({len(kept)})")
    axis.axvspan(edge, hi, color=BLUE, alpha=0.18, lw=0, label="window: always kept")
    axis.set(
        yscale="log", ylim=(1e-6, 1), xlim=(-40, hi + 40), xlabel="key position",
        ylabel="rank (share of all)",
        title=f"Which columns: mean and spread of queries rank them (rows {lo:,} to {hi - 1:,})",
    )  # fmt: skip
    axis.grid(axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(0.02, 1), ncols=3, columnspacing=1)


def _draw_counts(axis: plt.Axes, curves: dict[str, Tensor], count: int, coverage: float) -> None:
    most = 3 * count
    looks = ((BLUE, "-"), (RED, "--"))
    for (label, mass), (colour, line) in zip(curves.items(), looks, strict=True):
        kept = 1 - mass.sum() + torch.cat([mass.new_zeros(1), mass.cumsum(0)])
        axis.plot(kept[: most + 1], color=colour, ls=line, lw=2, label=label)
    start = float(1 - next(iter(curves.values())).sum())
    axis.axhline(coverage, color=INK, lw=1)
    axis.text(most, coverage - 0.015, f"coverage {coverage} ", ha="right", va="top")
    axis.axvline(count, color=ORANGE, lw=2, label=f"{count} columns are kept")
    axis.annotate(
        f"the window alone\nholds {start:.2f}", (0, start), (0.06 * most, start + 0.03),
        arrowprops={"arrowstyle": "-", "color": INK}, va="center",
    )  # fmt: skip
    axis.set(
        xlim=(0, most),
        ylim=(start - 0.06, 1.03),
        ylabel="mean retained mass",
        xlabel="columns kept, by falling rank",
        title="How many columns: exact rows count until window and columns reach the coverage",
    )
    axis.grid(axis="y")
    axis.legend(loc="lower right")


# --- alignment of segments and windows -------------------------------------------------------


def draw_alignment() -> None:
    """The same lists with a window edge per row and with edges aligned to runs of rows."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.7), layout="constrained", sharey=True)
    titles = "an edge for every row", "an edge for every run of rows (default)"
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


# --- records ---------------------------------------------------------------------------------


def draw_speedup() -> None:
    """Speed-up over dense attention against the length of the prompt, from the records."""
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    rows = by_length(read_records())
    if rows:
        _draw_lines(axis, rows)
    else:
        axis.text(0.5, 0.5, NO_RECORDS.replace("`", ""), ha="center", transform=axis.transAxes)
        axis.set_axis_off()
    save(figure, "cpu_speedup.svg")


def _draw_lines(axis: plt.Axes, rows: list[Row]) -> None:
    axis.axhline(1, color=INK, lw=1)
    axis.text(0.005, 0.98, " dense attention", va="top", transform=axis.get_yaxis_transform())
    looks = zip((BLUE, RED, GREEN, PURPLE), "os^D", strict=True)
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(f"{row['model']}, {row['preset']}", []).append(row)
    for (name, line), (colour, marker) in zip(lines.items(), looks, strict=False):
        for row in line:
            layers = [r["speedup"] for r in row["group"]]
            at = [row["seq_len"]] * len(layers)
            axis.plot(at, layers, ls="", color=colour, marker=".", ms=7, alpha=0.45, mew=0)
        lengths, speedups = [r["seq_len"] for r in line], [r["speedup"] for r in line]
        axis.plot(lengths, speedups, color=colour, marker=marker, lw=2, ms=7, label=name)
        for length, speedup in zip(lengths, speedups, strict=True):
            if length >= 8192:
                axis.annotate(
                    f"{speedup:.1f}×", (length, speedup), (-9, 4),
                    textcoords="offset points", ha="right",
                )  # fmt: skip
    ticks = [2**i for i in range(7, 18) if 2**i <= max(r["seq_len"] for r in rows)]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{n // 1024}K" if n >= 1024 else str(n) for n in ticks])
    axis.minorticks_off()
    axis.set_ylim(0, 1.12 * max(r["speedup"] for row in rows for r in row["group"]))
    axis.set(xlabel="prompt length (tokens)", ylabel="speed-up, selection included")
    axis.set_title(f"Attention on a CPU against dense SDPA\n{provenance(rows)}", fontsize=10)
    axis.grid(axis="y")
    axis.legend(loc="upper left", title="lines: mean of layers; dots: one layer")


def draw_gpu_speedup() -> None:
    """Speed-up on an NVIDIA GPU over its fastest dense attention, selection included."""
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    rows = shown(by_case(records("attention")))
    if rows:
        _draw_rules(axis, rows)
    else:
        axis.text(0.5, 0.5, NOTHING.replace("`", ""), ha="center", transform=axis.transAxes)
        axis.set_axis_off()
    save(figure, "gpu_speedup.svg")


def _draw_rules(axis: plt.Axes, rows: list[Row]) -> None:
    axis.axhline(1, color=INK, lw=1)
    axis.text(0.005, 0.98, " dense attention", va="top", transform=axis.get_yaxis_transform())
    lines: dict[str, list[Row]] = {}
    for row in rows:
        chosen = "short: runs dense" if row.get("routed") else rule_of(row)
        lines.setdefault(f"{row['text']}, {chosen}", []).append(row)
    colours = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
    for i, (name, line) in enumerate(lines.items()):
        lengths, speedups = [r["seq_len"] for r in line], [r["speedup"] for r in line]
        look = {"color": colours[i % len(colours)], "marker": "os^Dv"[i % 5]}
        axis.plot(lengths, speedups, lw=2, ms=6, label=name, **look)
        for length, speedup in zip(lengths, speedups, strict=True):
            if speedup > 1.1:
                axis.annotate(f"{speedup:.1f}×", (length, speedup), (-8, 3),
                              textcoords="offset points", ha="right")  # fmt: skip
    ticks = sorted({r["seq_len"] for r in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{n / 1024:g}K" for n in ticks])
    axis.minorticks_off()
    axis.set_ylim(0, 1.12 * max(r["speedup"] for r in rows))
    axis.set(xlabel="prompt length (tokens)", ylabel="speed-up, selection included")
    facts = textwrap.fill(gpu_provenance([x for row in rows for x in row["group"]]), 90)
    axis.set_title(f"Attention against the fastest dense provider\n{facts}", fontsize=9)
    axis.grid(axis="y")
    axis.legend(fontsize=8, title="means of layers")


def draw_evaluation() -> None:
    """Accuracy against density, and needle heat maps, where they were measured."""
    rows = read_evaluation()
    for name, draw in PICTURES.items():
        figure = draw(rows)
        if figure is not None:
            save(figure, name)


def main() -> int:
    """Draw and write, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the tables")
    check = parser.parse_args().check
    gpu = {page: page.read_text("utf-8") for page in (GPU_PAGE, README)}
    pages = tables() | gpu_pages(gpu) | evaluation_pages() | tuned_pages()
    pages |= architecture_pages() | version_pages()
    stale = [page for page, text in pages.items() if page.read_text("utf-8") != text]
    if check:
        sys.stderr.writelines(
            f"{page.name}: the table is not that of the records\n" for page in stale
        )
        return int(bool(stale))
    style()
    FIGURES.mkdir(exist_ok=True)
    for draw in (
        draw_masks, draw_segment, draw_alignment, draw_speedup, draw_gpu_speedup, draw_evaluation,
    ):  # fmt: skip
        draw()
    for page, text in pages.items():
        page.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
