"""Columns that single rows need: peaks of the sampled rows that are least like the others."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ...config import PEAK, RUN, QueryMoments
from .column_mass import staircase

COLUMNS_AT_ONCE = 4096
"""Columns that the farthest rows score at once: the scores stay in the caches."""


def peaks(q: Tensor, scores: Tensor, k: Tensor, limits: Tensor, ranking: QueryMoments) -> Tensor:
    """Columns of more than one in PEAK of the mass of a farthest row of their segment, and runs.

    Args:
        q: the sampled rows, scaled, `[G, M, R, D]`.
        scores: `[G, M, R, P]`, whose log-sum-exp is that of the rows, as far as probes tell.
        k: `[Skv, D]`.
        limits: int64 `[M]` on the host, how many columns each segment can choose from.
        ranking: how many rows, and from which share on there are runs.

    Returns:
        bool `[G, M, K]` with K the largest limit.
    """
    chosen = _farthest_rows(q, ranking.farthest_rows) + _starts(q)
    of_all = chosen.movedim(-1, 0).flatten()  # rows are copied whole
    rows = q.flatten(0, 2)[of_all]
    shift = math.log(PEAK) - torch.logsumexp(scores.flatten(0, 2)[of_all], -1)
    first, limit = int(limits.min()), int(limits.max())
    above = q.new_empty(*q.shape[:2], limit)
    for keys, part in zip(
        k[:limit].split(COLUMNS_AT_ONCE), above.split(COLUMNS_AT_ONCE, -1), strict=True
    ):
        over = torch.addmm(shift, keys, rows.T)  # tall by few is faster than few by wide
        most = functools.reduce(torch.maximum, over.chunk(ranking.farthest_rows, -1))
        part.copy_(most.T.unflatten(0, q.shape[:2]))
    beyond = staircase(limits - first, limit - first, q.device)
    above[..., first:].masked_fill_(beyond, -math.inf)
    found = above > 0
    if ranking.run_share is not None:
        found |= _runs(above > math.log(PEAK * ranking.run_share))
        found[..., first:].masked_fill_(beyond, value=False)
    return found


def _runs(high: Tensor) -> Tensor:
    """Blocks of RUN columns that hold a high peak, and those beside; the first holds none.

    bool like `high` `[G, M, K]`.
    """
    columns = high.shape[-1]
    blocks = torch.nn.functional.pad(high, (0, -columns % RUN)).unflatten(-1, (-1, RUN)).any(-1)
    blocks[..., 0] = False
    wide = torch.nn.functional.pad(blocks, (1, 1))
    near = wide[..., :-2] | blocks | wide[..., 2:]
    return near.repeat_interleave(RUN, -1)[..., :columns]


def _farthest_rows(q: Tensor, count: int) -> Tensor:
    """Rows of q `[..., R, D]` farthest from the mean and from those before: int64 `[..., count]`.

    Where fewer rows are there, some are named again.
    """
    distance = _distance(q, q.mean(-2, keepdim=True))
    chosen: list[Tensor] = []
    for _ in range(count):
        farthest = distance.argmax(-1, keepdim=True)
        chosen.append(farthest)
        row = q.take_along_dim(farthest[..., None], -2)
        distance = torch.minimum(distance, _distance(q, row))
    return torch.cat(chosen, -1)


def _starts(q: Tensor) -> Tensor:
    """Number of the first row of each segment among all rows of `[G, M, R, D]`: `[G, M, 1]`."""
    groups, segments, rows, _ = q.shape
    return torch.arange(0, groups * segments * rows, rows, device=q.device).view(groups, -1, 1)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum(-1)
