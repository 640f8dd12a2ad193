"""Selection per segment: its queries rank the columns, exactly sampled rows decide how many."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...kernels.parallel import Task
from ..bins import rank_classes
from ..lists import SegmentLists
from ..rows import strided_rows
from ..sampled_keys import probe_step
from .column_mass import GroupRows, column_mass
from .lists import lists_of, needed, smallest_classes
from .moments import spread_columns

SCORES_AT_ONCE = 2**20
"""Scores of sampled rows that a worker holds, about: bounds memory and fits the caches."""

PROBED_AT_ONCE = 2**21
"""The same with `spread`, which reads all keys for as many segments as are selected at once."""


def select_segments(rows: GroupRows, n: int, lists: SegmentLists) -> Iterator[Task]:
    """Tasks that fill `lists` for every segment of one group of heads of one sequence."""
    if lists.config.spread:
        rows.prepare()
    for run in reversed([*_runs(rows, n, lists)]):  # the longest first, that workers end together
        yield partial(_select_run, rows, n, run, lists)


def at_once(config: SampleAttentionConfig) -> int:
    """Scores that a worker holds at once, about."""
    return PROBED_AT_ONCE if config.spread else SCORES_AT_ONCE


def scores_of_segment(config: SampleAttentionConfig, segment: int, kv_len: int) -> int:
    """Scores that one head of a segment holds at once, about, with `kv_len` keys to see."""
    sampled = max(1, segment // config.row_stride)
    if not config.spread:
        return sampled * kv_len
    probed = min(kv_len, config.probes or kv_len) + config.window_for(kv_len) + segment
    return sampled * min(probed, kv_len) + kv_len


def _runs(rows: GroupRows, n: int, lists: SegmentLists) -> Iterator[list[int]]:
    """Consecutive segments of equal length that are selected at once; dense ones are marked.

    Segments without columns to choose from are left out. Those of a run have the same probes.
    """
    config, size = lists.config, lists.segment
    window, tail = config.window_for(len(rows.k)), config.tail_from(len(rows.k))
    run: list[int] = []
    run_step = 1
    for g, (lo, hi) in enumerate(lists.starts(n)):
        nominal_end = (lo // size + 1) * size
        sampled = len(strided_rows(lo, hi, config.row_stride))
        if nominal_end <= config.dense_prefix or lo >= tail or not sampled:
            lists.dense[n, rows.heads.start : rows.heads.stop, g] = True
            continue
        columns = int(_edges(torch.tensor(hi - 1, device="cpu"), window, config))
        if columns == 0:
            continue
        if hi - lo < size:  # a segment that the call cuts has fewer rows than its neighbours
            yield [g]
            continue
        step = probe_step(columns, config.probes)
        if run and step != run_step:
            yield run
            run = []
        run_step = step
        run.append(g)
        if len(run) * len(rows.heads) * scores_of_segment(config, size, hi) >= at_once(config):
            yield run
            run = []
    if run:
        yield run


def _select_run(rows: GroupRows, n: int, run: list[int], lists: SegmentLists) -> None:
    config = lists.config
    spans = [lists.starts(n)[g] for g in run]
    window = config.window_for(len(rows.k))
    limits = _edges(torch.tensor([hi - 1 for _, hi in spans], device="cpu"), window, config)
    if config.spread:
        keep, sure = spread_columns(rows, spans, limits, config)
    else:
        keep, sure = _pooled_columns(rows, spans, limits, config)
    heads, segments = slice(rows.heads.start, rows.heads.stop), slice(run[0], run[-1] + 1)
    dense = ~sure | (keep.sum(-1) > config.dense_above * limits.to(keep.device))
    lists.dense[n, heads, segments] = dense.cpu()
    columns = lists_of((keep & ~dense[..., None]).flatten(0, 1))
    for i, h in enumerate(rows.heads):
        for j, g in enumerate(run):
            lists.put(n, h, g, columns[i * len(run) + j])


def _pooled_columns(
    rows: GroupRows, spans: list[tuple[int, int]], limits: Tensor, config: SampleAttentionConfig
) -> tuple[Tensor, Tensor]:
    """Columns ranked by mean queries of pools, or by the sampled rows; see `spread_columns`."""
    window, limit = config.window_for(len(rows.k)), int(limits.max())
    positions = torch.cat([strided_rows(lo, hi, config.row_stride) for lo, hi in spans])
    prob = rows.softmax(positions)
    exact = ranked = column_mass(prob, _edges(positions, window, config), len(spans), limit)
    if config.pool is not None:
        prob, firsts = rows.pooled_softmax(spans[0][0], spans[-1][1], config.pool)
        ranked = column_mass(prob, _edges(firsts, window, config), len(spans), limit)
    classes = rank_classes(ranked.float())
    lowest = smallest_classes(classes, exact, needed(exact, rows.heads, config, limits))
    keep = classes >= lowest[..., None]
    last = int(limits.min())
    beyond = torch.arange(last, keep.shape[-1], device="cpu") >= limits[:, None]
    keep[..., last:] &= ~beyond.to(keep.device)
    return keep, exact.sum(-1).isfinite() & ranked.sum(-1).isfinite()


def _edges(positions: Tensor, window: int, config: SampleAttentionConfig) -> Tensor:
    """First key of the window of the rows at `positions`, or 0: columns lie left of it."""
    align = config.window_alignment
    return (positions // align * align - window + 1).clamp(min=0)
