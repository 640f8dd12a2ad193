"""Columns that single rows need: peaks of the rows of a segment that are least like its others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...config import PEAK
from .mass import GroupRows


def peaks(rows: GroupRows, spans: list[tuple[int, int]], limits: Tensor, count: int) -> Tensor:
    """Columns of more than one in PEAK of the mass of one of `count` outlier rows.

    Args:
        rows: G heads.
        spans: first and past-the-last position of the rows of M consecutive segments, equally long.
        limits: int64 `[M]` on the host, how many columns each can choose from.
        count: outlier rows of a segment.

    Returns:
        bool `[G, M, K]` with K the largest limit.
    """
    lo, hi, limit = spans[0][0], spans[-1][1], int(limits.max())
    queries = rows.q[:, lo - rows.offset : hi - rows.offset].unflatten(1, (len(spans), -1))
    chosen = _outlier_rows(queries, count)
    starts = torch.tensor([start for start, _ in spans], device=chosen.device)
    positions = (chosen + starts[:, None])[..., None]
    q = queries.gather(2, chosen[..., None].expand(-1, -1, -1, queries.shape[-1]))
    scores = (q.flatten(0, 2) * rows.scale @ rows.k[:hi].T).unflatten(0, chosen.shape)
    columns = torch.arange(hi, device=scores.device)
    first = int(limits.min())
    scores[..., first:].masked_fill_(columns[first:] > positions, -math.inf)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    found = (scores[..., :limit] > lse - math.log(PEAK)).any(2)
    found[..., first:] &= columns[first:limit] < limits[:, None].to(scores.device)
    return found


def _outlier_rows(queries: Tensor, count: int) -> Tensor:
    """Rows of `[..., R, D]` farthest from the mean row and from those before: int64 `[..., count]`.

    Where fewer rows are there, some are named again.
    """
    distance = _distance(queries, queries.mean(-2, keepdim=True))
    chosen: list[Tensor] = []
    for _ in range(count):
        farthest = distance.argmax(-1, keepdim=True)
        chosen.append(farthest)
        index = farthest[..., None].expand(*farthest.shape, queries.shape[-1])
        distance = torch.minimum(distance, _distance(queries, queries.gather(-2, index)))
    return torch.cat(chosen, -1)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum(-1)
