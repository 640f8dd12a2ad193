"""Selection per segment: its queries rank the columns, exactly sampled rows decide how many."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ...config import PooledQueries, QueryMoments, SampleAttentionConfig
from ...kernels.parallel import Task
from ..bins import rank_bins
from ..geometry import plan_form, tail_from, window_edges
from ..lists import SegmentLists
from ..rows import strided_rows
from ..sampled_keys import key_step
from .column_mass import GroupRows, column_mass
from .lists import lists_of, needed, smallest_bins
from .moments import spread_columns

SCORES_AT_ONCE = 2**20
"""Scores of sampled rows that a worker holds, about: bounds memory and fits the caches."""

SAMPLED_AT_ONCE = 2**21
"""The same where moments rank, which read all keys for as many segments as are selected at once."""


def select_segments(
    rows: GroupRows, n: int, lists: SegmentLists, config: SampleAttentionConfig
) -> Iterator[Task]:
    """Tasks that fill `lists` for every segment of one group of heads of one sequence."""
    if isinstance(config.ranking, QueryMoments):
        rows.prepare()
    together = [*_together(rows, n, lists, config)]
    for some in reversed(together):  # the longest first, that workers end together
        yield partial(_select_some, rows, n, some, lists, config)


def at_once(config: SampleAttentionConfig) -> int:
    """Scores that a worker holds at once, about."""
    return SAMPLED_AT_ONCE if isinstance(config.ranking, QueryMoments) else SCORES_AT_ONCE


def scores_of_segment(config: SampleAttentionConfig, segment: int, kv_len: int) -> int:
    """Scores that one head of a segment holds at once, about, with `kv_len` keys to see."""
    sampled, ranking = max(1, segment // config.sample_stride), config.ranking
    if not isinstance(ranking, QueryMoments):
        return sampled * kv_len
    scored = min(kv_len, ranking.sampled_keys or kv_len) + config.window + segment
    return sampled * min(scored, kv_len) + kv_len


def _together(
    rows: GroupRows, n: int, lists: SegmentLists, config: SampleAttentionConfig
) -> Iterator[list[int]]:
    """Consecutive segments of equal length that are selected at once; dense ones are marked.

    Segments without columns to choose from are left out. Those selected at once have the same
    sampled keys.
    """
    size, tail, ranking = lists.segment, tail_from(config, len(rows.k)), config.ranking
    sampled_keys = ranking.sampled_keys if isinstance(ranking, QueryMoments) else None
    some: list[int] = []
    same_step = 1
    for g, (lo, hi) in enumerate(lists.starts(n)):
        nominal_end = (lo // size + 1) * size
        sampled = len(strided_rows(lo, hi, config.sample_stride))
        if nominal_end <= config.dense_prefix or lo >= tail or not sampled:
            lists.dense[n, rows.heads.start : rows.heads.stop, g] = True
            continue
        columns = int(_edges(torch.tensor(hi - 1, device="cpu"), config))
        if columns == 0:
            continue
        if hi - lo < size:  # a segment that the call cuts has fewer rows than its neighbours
            yield [g]
            continue
        step = key_step(columns, sampled_keys)
        if some and step != same_step:
            yield some
            some = []
        same_step = step
        some.append(g)
        if len(some) * len(rows.heads) * scores_of_segment(config, size, hi) >= at_once(config):
            yield some
            some = []
    if some:
        yield some


def _select_some(
    rows: GroupRows, n: int, some: list[int], lists: SegmentLists, config: SampleAttentionConfig
) -> None:
    spans = [lists.starts(n)[g] for g in some]
    limits = _edges(torch.tensor([hi - 1 for _, hi in spans], device="cpu"), config)
    if isinstance(config.ranking, QueryMoments):
        keep, sure = spread_columns(rows, spans, limits, config)
    else:
        keep, sure = _pooled_columns(rows, spans, limits, config)
    heads, segments = slice(rows.heads.start, rows.heads.stop), slice(some[0], some[-1] + 1)
    dense = ~sure | (keep.sum(-1) > config.dense_above * limits.to(keep.device))
    lists.dense[n, heads, segments] = dense.cpu()
    columns = lists_of((keep & ~dense[..., None]).flatten(0, 1))
    for i, h in enumerate(rows.heads):
        for j, g in enumerate(some):
            lists.put(n, h, g, columns[i * len(some) + j])


def _pooled_columns(
    rows: GroupRows, spans: list[tuple[int, int]], limits: Tensor, config: SampleAttentionConfig
) -> tuple[Tensor, Tensor]:
    """Columns ranked by mean queries of pools, or by the sampled rows; see `spread_columns`."""
    limit = int(limits.max())
    positions = torch.cat([strided_rows(lo, hi, config.sample_stride) for lo, hi in spans])
    prob = rows.softmax(positions)
    exact = ranked = column_mass(prob, _edges(positions, config), len(spans), limit)
    if isinstance(config.ranking, PooledQueries):
        prob, firsts = rows.pooled_softmax(spans[0][0], spans[-1][1], config.ranking.rows)
        ranked = column_mass(prob, _edges(firsts, config), len(spans), limit)
    bins = rank_bins(ranked.float())
    lowest = smallest_bins(bins, exact, needed(exact, rows.heads, config, limits))
    keep = bins >= lowest[..., None]
    last = int(limits.min())
    beyond = torch.arange(last, keep.shape[-1], device="cpu") >= limits[:, None]
    keep[..., last:] &= ~beyond.to(keep.device)
    return keep, exact.sum(-1).isfinite() & ranked.sum(-1).isfinite()


def _edges(positions: Tensor, config: SampleAttentionConfig) -> Tensor:
    return window_edges(positions, config.window, plan_form(config).window_alignment)
