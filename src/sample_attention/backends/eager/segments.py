"""Selection per segment: mean queries rank the columns, exactly sampled rows decide how many."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...selection.classes import rank_classes
from ...selection.lists import SegmentLists
from ...selection.rows import strided_rows
from .filtering import lists_of, smallest_classes
from .mass import GroupRows, column_mass

SCORES_AT_ONCE = 2**20
"""Scores of sampled rows held at once, about: bounds the memory of stage 1 and fits the caches."""


def select_segments(rows: GroupRows, n: int, lists: SegmentLists) -> None:
    """Fill `lists` for every segment of one group of heads of one sequence."""
    for run in _runs(rows, n, lists):
        _select_run(rows, n, run, lists)


def _runs(rows: GroupRows, n: int, lists: SegmentLists) -> Iterator[list[int]]:
    """Consecutive segments of equal length that are selected at once; dense ones are marked."""
    config, size = lists.config, lists.segment
    run: list[int] = []
    for g, (lo, hi) in enumerate(lists.starts(n)):
        nominal_end = (lo // size + 1) * size
        if nominal_end <= config.dense_prefix or not len(strided_rows(lo, hi, config.row_stride)):
            lists.dense[n, rows.heads.start : rows.heads.stop, g] = True
            continue
        if hi - lo < size:  # a segment that the call cuts has fewer rows than its neighbours
            yield [g]
            continue
        run.append(g)
        if len(run) * len(rows.heads) * (size // config.row_stride) * hi >= SCORES_AT_ONCE:
            yield run
            run = []
    if run:
        yield run


def _select_run(rows: GroupRows, n: int, run: list[int], lists: SegmentLists) -> None:
    config = lists.config
    spans = [lists.starts(n)[g] for g in run]
    window = config.window_for(len(rows.k))
    edges = _edges(torch.tensor([hi - 1 for _, hi in spans]), window, config)
    limit, limits = int(edges.max()), edges.to(rows.k.device)
    if limit == 0:
        return
    heads, segments = slice(rows.heads.start, rows.heads.stop), slice(run[0], run[-1] + 1)
    positions = torch.cat([strided_rows(lo, hi, config.row_stride) for lo, hi in spans])
    prob = rows.softmax(positions)
    exact = ranked = column_mass(prob, _edges(positions, window, config), len(run), limit)
    if config.pool is not None:
        prob, firsts = rows.pooled_softmax(spans[0][0], spans[-1][1], config.pool)
        ranked = column_mass(prob, _edges(firsts, window, config), len(run), limit)
    keep = _kept(ranked, exact, limits, config)
    too_many = keep.sum(-1) > config.dense_above * limits
    dense = too_many | ~exact.sum(-1).isfinite() | ~ranked.sum(-1).isfinite()
    lists.dense[n, heads, segments] = dense.cpu()
    columns = lists_of((keep & ~dense[..., None]).flatten(0, 1))
    for i, h in enumerate(rows.heads):
        for j, g in enumerate(run):
            lists.put(n, h, g, columns[i * len(run) + j])


def _kept(rank: Tensor, mass: Tensor, limits: Tensor, config: SampleAttentionConfig) -> Tensor:
    """Columns in the fewest classes of `rank` that hold the share of `mass`: bool `[G, M, K]`."""
    outside = mass.sum(-1)
    need = config.coverage - (1 - outside) if config.residual else config.coverage * outside
    classes = rank_classes(rank.float())
    keep = classes >= smallest_classes(classes, mass, need)[..., None]
    last = int(limits.min())
    keep[..., last:] &= torch.arange(last, keep.shape[-1], device=keep.device) < limits[:, None]
    return keep


def _edges(positions: Tensor, window: int, config: SampleAttentionConfig) -> Tensor:
    """First key of the window of the rows at `positions`, or 0: columns lie left of it."""
    align = config.window_alignment
    return (positions // align * align - window + 1).clamp(min=0)
