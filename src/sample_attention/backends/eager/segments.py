"""Selection per segment: mean queries rank the columns, exactly sampled rows decide how many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...selection.classes import rank_classes
from ...selection.lists import SegmentLists
from ...selection.rows import strided_rows
from .filtering import lists_of, smallest_classes
from .mass import column_mass, softmax_rows
from .parallel import Task

GROUP_ROWS = 512
"""Query rows whose segments are selected together: bounds the memory, and fits the caches."""


@dataclass(frozen=True)
class HeadRows:
    """One head of one sequence, in the precision of the selection.

    Attributes:
        q: `[Sq, D]`.
        k: `[Skv, D]`.
        offset: position of the first query.
        scale: multiplies q.k.
    """

    q: Tensor
    k: Tensor
    offset: int
    scale: float

    def softmax(self, positions: Tensor) -> Tensor:
        """Causal softmax of the rows at `positions`: `[R, last + 1]`."""
        keys = self.k[: int(positions.max()) + 1]
        return softmax_rows(self.q[positions - self.offset], keys, positions, self.scale)

    def pooled_softmax(self, lo: int, hi: int, pool: int) -> tuple[Tensor, Tensor]:
        """Softmax of the mean query of each aligned pool of rows in [lo, hi).

        Returns:
            Probabilities on the keys up to each pool's first row, and those rows `[P]`.
        """
        rows = self.q[lo - self.offset : hi - self.offset]
        if lo % pool == hi % pool == 0:
            means = rows.view(-1, pool, rows.shape[1]).mean(1)
        else:
            ids = torch.arange(lo, hi) // pool - lo // pool
            sums = rows.new_zeros(int(ids[-1]) + 1, rows.shape[1])
            sums.index_add_(0, ids.to(rows.device), rows)
            means = sums / torch.bincount(ids)[:, None].to(rows.device)
        firsts = (torch.arange(len(means)) + lo // pool).mul_(pool).clamp_(min=lo)
        return softmax_rows(means, self.k[: int(firsts[-1]) + 1], firsts, self.scale), firsts


def segment_tasks(head: HeadRows, n: int, h: int, lists: SegmentLists) -> Iterator[Task]:
    """What fills `lists` for every segment of one head of one sequence, in independent parts."""
    config, starts, size = lists.config, lists.starts(n), lists.segment
    group: list[int] = []
    for g, (lo, hi) in enumerate(starts):
        nominal_end = (lo // size + 1) * size
        if nominal_end <= config.dense_prefix or not len(strided_rows(lo, hi, config.row_stride)):
            lists.dense[n, h, g] = True
            continue
        if hi - lo < size:  # a segment that the call cuts has fewer rows than its neighbours
            yield partial(_select_group, head, n, h, [g], lists)
            continue
        group.append(g)
        if len(group) * size >= GROUP_ROWS:
            yield partial(_select_group, head, n, h, group, lists)
            group = []
    if group:
        yield partial(_select_group, head, n, h, group, lists)


def _select_group(head: HeadRows, n: int, h: int, group: list[int], lists: SegmentLists) -> None:
    """Select consecutive segments of equal length at once."""
    config = lists.config
    spans = [lists.starts(n)[g] for g in group]
    window = config.window_for(len(head.k))
    edges = _edges(torch.tensor([hi - 1 for _, hi in spans]), window, config)
    limit, limits = int(edges.max()), edges.to(head.k.device)
    if limit == 0:
        return
    ranked, flat_by_rank = None, torch.zeros_like(limits, dtype=torch.bool)
    if config.pool is not None:
        prob, firsts = head.pooled_softmax(spans[0][0], spans[-1][1], config.pool)
        ranked = column_mass(prob, _edges(firsts, window, config), len(spans), limit)
        flat_by_rank = _kept(ranked, ranked, limits, config).sum(1) > config.dense_above * limits
        if bool(flat_by_rank.all()):
            lists.dense[n, h, group] = True
            return
    exact = _exact_mass(head, spans, window, limit, config)
    keep = _kept(exact if ranked is None else ranked, exact, limits, config)
    flat = keep.sum(1) > config.dense_above * limits
    flat |= flat_by_rank | ~exact.sum(1).isfinite()
    lists.dense[n, h, group] = flat.cpu()
    for g, columns in zip(group, lists_of(keep & ~flat[:, None]), strict=True):
        lists.put(n, h, g, columns)


def _kept(rank: Tensor, mass: Tensor, limits: Tensor, config: SampleAttentionConfig) -> Tensor:
    """Columns in the fewest classes of `rank` that hold the share of `mass`: bool `[M, K]`."""
    outside = mass.sum(1)
    need = config.coverage - (1 - outside) if config.residual else config.coverage * outside
    classes = rank_classes(rank.float())
    keep = classes >= smallest_classes(classes, mass, need)[:, None]
    return keep & (torch.arange(keep.shape[1], device=keep.device) < limits[:, None])


def _exact_mass(
    head: HeadRows, spans: list[tuple[int, int]], window: int, limit: int,
    config: SampleAttentionConfig,
) -> Tensor:  # fmt: skip
    """Mean mass per column outside the window, on the sampled rows: `[segments, limit]`."""
    positions = torch.cat([strided_rows(lo, hi, config.row_stride) for lo, hi in spans])
    edges = _edges(positions, window, config)
    return column_mass(head.softmax(positions), edges, len(spans), limit)


def _edges(positions: Tensor, window: int, config: SampleAttentionConfig) -> Tensor:
    """First key of the window of the rows at `positions`, or 0: columns lie left of it."""
    align = config.window_alignment
    return (positions // align * align - window + 1).clamp(min=0)
