"""Selection per segment where mean and variance of its queries rank and rows count on probes.

The rank of key k under queries of mean m and variance s has the exponent m.k + s.(k k - 2 c k),
both scaled, c being the mean key: one product per segment over all keys and no softmax. The sampled
rows score the keys of their window and probed columns only: those at even distances, each of which
stands for its neighbours as well, and heavy ones, which stand for themselves. What a mean hides is
kept as well: peaks of those sampled rows that are least like the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import (
    BINS_PER_OCTAVE,
    LOWEST_RANK,
    MOST_HEAVY,
    SPREAD_SHARE,
    SampleAttentionConfig,
)
from ..geometry import moments_of
from ..rows import strided_rows
from ..sampled_keys import NUM_RANKS, key_step
from .column_mass import GroupRows, staircase
from .lists import needed, smallest_bins
from .peaks import peaks

CLASSES_PER_E = BINS_PER_OCTAVE / math.log(2)
"""Classes that a factor of e spans."""


@dataclass(frozen=True)
class Segments:
    """M consecutive segments of equal length whose regular probes are equally far apart.

    Attributes:
        spans: first and past-the-last position of each segment's rows.
        limits: int64 `[M]` on the host, how many columns each can choose from, 1 or more.
        step: distance of the regular probes.
    """

    spans: list[tuple[int, int]]
    limits: Tensor
    step: int


@dataclass(frozen=True)
class Probes:
    """Columns that the rows of each segment score: regular ones, then heavy ones.

    Attributes:
        heavy: int64 `[G, M, P']`, the heavy columns, padded.
        bins: `[G, M, P + P']`, whole numbers, from 0 to NUM_RANKS - 1.
        bias: `[G, M, P + P']`, log of how many columns one stands for; -inf: not one.
    """

    heavy: Tensor
    bins: Tensor
    bias: Tensor


def spread_columns(
    rows: GroupRows, spans: list[tuple[int, int]], limits: Tensor, config: SampleAttentionConfig
) -> tuple[Tensor, Tensor]:
    """Columns to keep for M consecutive segments of equal length and equal distance of probes.

    Args:
        rows: G heads.
        spans: first and past-the-last position of each segment's rows.
        limits: int64 `[M]` on the host, how many columns each can choose from, 1 or more.
        config: the rule.

    Returns:
        bool `[G, M, K]` with K the largest limit, and bool `[G, M]`, whether that can be relied
        on: not where numbers overflow, nor where too many columns are heavy for all to be scored.
    """
    ranking = moments_of(config)
    segments = Segments(spans, limits, key_step(int(limits.max()), ranking.sampled_keys))
    rank, sure = _ranks(rows, segments)
    heavy_from = _heavy_from(rank, segments.step)
    probes = _probes(rank, heavy_from, sure, segments.step)
    q, scores = _scores(rows, segments, probes, config)
    alone = peaks(q, scores, rows.k, limits, ranking) if ranking.farthest_rows else None
    probed = probes.bias.shape[-1]
    mass = torch.softmax(scores, -1, out=scores)[..., :probed].mean(2)
    need = needed(mass, rows.heads, config, limits)
    lowest = smallest_bins(probes.bins, mass, need, NUM_RANKS)
    keep_from = lowest + (heavy_from + LOWEST_RANK)
    keep_from.masked_fill_(lowest == 0, torch.finfo(rank.dtype).min)
    keep_from.masked_fill_(lowest == NUM_RANKS, math.inf)
    keep = rank >= keep_from[..., None]
    if alone is not None:
        keep |= alone
    return keep, sure & mass.sum(-1).isfinite()


def _ranks(rows: GroupRows, segments: Segments) -> tuple[Tensor, Tensor]:
    """Exponents of the ranks in bins, -inf beyond each limit: `[G, M, K]`; and what is finite.

    Ranks of a segment `[G, M]` that is not are 0.
    """
    limits, step = segments.limits, segments.step
    first, limit = int(limits.min()), int(limits.max())
    lo, hi = segments.spans[0][0] - rows.offset, segments.spans[-1][1] - rows.offset
    queries = rows.q[:, lo:hi].unflatten(1, (len(limits), -1))
    mean = queries.mean(2)  # var_mean over a middle dimension is slow on a CPU
    variance = (queries - mean[:, :, None]).square_().mean(2)
    second = variance * (SPREAD_SHARE * rows.scale**2 / 2)
    first_order = mean * rows.scale - 2 * second * rows.centres(limits)
    both = torch.cat([first_order, second], -1) * CLASSES_PER_E
    rank = (both.flatten(0, 1) @ rows.powers[:limit].T).unflatten(0, both.shape[:2])
    beyond = torch.arange(first, limit, device="cpu") >= limits[:, None]
    rank[..., first:].masked_fill_(beyond.to(rank.device), -math.inf)
    finite = (rank.amax(-1) + rank[..., step - 1 :: step].amax(-1)).isfinite()
    if not bool(finite.all()):
        rank.masked_fill_(~finite[..., None], 0.0)
    return rank, finite


def _heavy_from(rank: Tensor, step: int) -> Tensor:
    """The lowest bin, `[G, M]`, of columns with more than one in MOST_HEAVY of all ranks."""
    regular = rank[..., step - 1 :: step].floor()
    top = regular.amax(-1)
    total = step * torch.exp2((regular - top[..., None]) / BINS_PER_OCTAVE).sum(-1)
    return top + torch.ceil(BINS_PER_OCTAVE * torch.log2(total / MOST_HEAVY))


def _probes(rank: Tensor, heavy_from: Tensor, sure: Tensor, step: int) -> Probes:
    """Regular and heavy columns; `sure` is cleared where the heavy ones are too many."""
    regular, alone_from = rank[..., step - 1 :: step], heavy_from[..., None]
    if step == 1:  # every column stands for itself
        alone_from = torch.full_like(alone_from, math.inf)
    heavy = rank >= alone_from
    sure &= heavy.sum(-1) <= 2 * MOST_HEAVY
    columns, padding = _padded(heavy & sure[..., None])
    alone = torch.where(padding, -math.inf, rank.new_zeros(()))
    stand = rank.new_full(regular.shape, math.log(step))
    stand.masked_fill_((regular >= alone_from) | regular.isneginf(), -math.inf)
    ranks = torch.cat([regular, rank.gather(-1, columns)], -1).floor()
    bins = (ranks - heavy_from[..., None] - LOWEST_RANK).clamp_(0, NUM_RANKS - 1)
    return Probes(columns, bins, torch.cat([stand, alone], -1))


def _padded(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the True entries of each row of `flags` `[G, M, K]`, and what is none."""
    counts = flags.sum(-1)
    widest = int(counts.max())
    row, column = flags.flatten(0, 1).nonzero(as_tuple=True)
    before = counts.flatten().cumsum(0) - counts.flatten()
    columns = column.new_zeros(counts.numel(), widest)
    columns[row, torch.arange(len(row), device=row.device) - before[row]] = column
    padding = torch.arange(widest, device=row.device) >= counts[..., None]
    return columns.unflatten(0, counts.shape), padding


def _scores(
    rows: GroupRows, segments: Segments, probes: Probes, config: SampleAttentionConfig
) -> tuple[Tensor, Tensor]:
    """Sampled queries, scaled, `[G, M, R, D]`, and what they give to the probes and near keys.

    Scores `[G, M, R, P + P' + W]`, to those of probes the log of what each stands for is added.
    """
    (lo, hi), limits, step = segments.spans[0], segments.limits, segments.step
    positions = torch.cat([strided_rows(*span, config.sample_stride) for span in segments.spans])
    q = (rows.q[:, positions - rows.offset] * rows.scale).unflatten(1, (len(limits), -1))
    regular = q @ rows.k[step - 1 : int(limits.max()) : step].T
    heavy = q.flatten(0, 1) @ rows.k[probes.heavy.flatten(0, 1)].mT
    first = int(limits[0])
    windows = rows.k[first : segments.spans[-1][1]].unfold(0, hi - first, hi - lo)
    near = q.transpose(0, 1).flatten(1, 2) @ windows
    near = near.unflatten(1, (len(q), -1)).transpose(0, 1)
    scores = torch.cat([regular, heavy.unflatten(0, q.shape[:2]), near], -1)
    probed = probes.bias.shape[-1]
    scores[..., :probed] += probes.bias[:, :, None]
    hidden = staircase(positions[: q.shape[2]] + 1 - first, hi - first, q.device)
    scores[..., probed:].masked_fill_(hidden, -math.inf)
    return q, scores
