"""Stage 1: the softmax of a few query rows over every key they see, reduced per key column."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import CENTRE_STRIDE, WINDOW_ALIGNMENT
from ...problem.modes import lasting


class ScoreBuffer(threading.local):
    """Memory for scores that is written again and again, so that it stays in the caches.

    Each thread has its own.
    """

    def __init__(self, like: Tensor) -> None:
        """Buffers of the dtype and device of `like`; nothing is allocated yet."""
        self._flat = like.new_empty(0)

    def take(self, rows: int, columns: int) -> Tensor:
        """`[rows, columns]`, unwritten; what was taken before is gone."""
        if self._flat.numel() < rows * columns:
            self._flat = self._flat.new_empty(rows * columns)
        return self._flat[: rows * columns].view(rows, columns)


@dataclass(frozen=True)
class GroupRows:
    """Query heads of one sequence that share a key head, in the precision of the selection.

    Attributes:
        q: `[G, Sq, D]`, fp32 or fp64.
        k: `[Skv, D]`.
        heads: the query heads' numbers.
        offset: position of the first query.
        scale: multiplies q.k.
        buffer: holds the result of the last call: each call overwrites the one before.
    """

    q: Tensor
    k: Tensor
    heads: range
    offset: int
    scale: float
    buffer: ScoreBuffer

    def prepare(self) -> None:
        """Compute what the ranks of all segments need, before tasks share it."""
        _ = self.powers, self.sums

    @functools.cached_property
    def powers(self) -> Tensor:
        """Keys beside their squares: `[Skv, 2 D]`."""
        return torch.cat([self.k, self.k.square()], -1)

    @functools.cached_property
    def sums(self) -> Tensor:
        """Sums of one key in CENTRE_STRIDE of no, one, two, all runs of WINDOW_ALIGNMENT."""
        whole = len(self.k) // WINDOW_ALIGNMENT * WINDOW_ALIGNMENT
        sampled = self.k[CENTRE_STRIDE - 1 : whole : CENTRE_STRIDE]
        of_runs = sampled.unflatten(0, (-1, WINDOW_ALIGNMENT // CENTRE_STRIDE)).sum(1)
        return torch.cat([torch.zeros_like(self.k[:1]), of_runs.cumsum(0)])

    def centres(self, limits: Tensor) -> Tensor:
        """Means of the sampled keys among the first `limits` `[M]`, on the host: `[M, D]`."""
        runs = limits // WINDOW_ALIGNMENT
        counts = (runs * (WINDOW_ALIGNMENT // CENTRE_STRIDE)).clamp(min=1)
        return self.sums[runs.to(self.k.device)] / counts[:, None].to(self.k.device)

    def softmax(self, positions: Tensor) -> Tensor:
        """Causal softmax of the rows at `positions` (on the host): `[G, R, last + 1]`."""
        return self._softmax(self.q[:, positions - self.offset], positions)

    def pooled_softmax(self, lo: int, hi: int, pool: int) -> tuple[Tensor, Tensor]:
        """Softmax of the mean query of each aligned pool of rows in [lo, hi).

        Returns:
            `[G, P, K]` on the keys up to each pool's first row, and those rows `[P]`.
        """
        rows = self.q[:, lo - self.offset : hi - self.offset]
        if lo % pool == hi % pool == 0:
            means = rows.unflatten(1, (-1, pool)).mean(2)
        else:
            ids = torch.arange(lo, hi, device="cpu") // pool - lo // pool
            sums = rows.new_zeros(len(rows), int(ids[-1]) + 1, rows.shape[2])
            sums.index_add_(1, ids.to(rows.device), rows)
            means = sums / torch.bincount(ids)[:, None].to(rows.device)
        firsts = (torch.arange(means.shape[1], device="cpu") + lo // pool).mul_(pool).clamp_(min=lo)
        return self._softmax(means, firsts), firsts

    def lse(self, positions: Tensor) -> Tensor:
        """Natural log-sum-exp of the rows at `positions` over all keys they see: `[G, R]`."""
        return torch.logsumexp(self._scores(self.q[:, positions - self.offset], positions), -1)

    def _softmax(self, q: Tensor, positions: Tensor) -> Tensor:
        scores = self._scores(q, positions)
        return torch.softmax(scores, dim=-1, out=scores)

    def _scores(self, q: Tensor, positions: Tensor) -> Tensor:
        """Scores of q `[G, R, D]`, of which row r sees keys 0..positions[r]."""
        keys = self.k[: int(positions.max()) + 1]
        flat = (q * self.scale).flatten(0, 1)
        scores = torch.mm(flat, keys.T, out=self.buffer.take(len(flat), len(keys)))
        scores = scores.view(*q.shape[:2], -1)
        first = int(positions.min()) + 1  # every row sees the keys left of this
        hidden = staircase(positions + 1 - first, len(keys) - first, q.device)
        scores[..., first:].masked_fill_(hidden, -torch.inf)
        return scores


def column_mass(prob: Tensor, edges: Tensor, runs: int, limit: int) -> Tensor:
    """Mean probability per key column over each of `runs` equal runs of rows.

    Args:
        prob: `[G, R, K]` probabilities; zeroed in place from each row's edge on.
        edges: int64 `[R]` on the host, first key of each row's window, which is not counted.
        runs: how many means to take; divides R.
        limit: columns of the result, at least the largest edge.

    Returns:
        `[G, runs, limit]`.
    """
    last = min(limit, prob.shape[2])
    first = min(int(edges.min()), last)
    inside = staircase(edges - first, last - first, prob.device)
    prob[..., first:last].masked_fill_(inside, 0.0)
    rows = prob.shape[1] // runs
    mass = prob[..., :last].unflatten(1, (runs, rows)).mean(2)
    return torch.nn.functional.pad(mass, (0, limit - last))


def staircase(steps: Tensor, width: int, device: torch.device) -> Tensor:
    """Bool `[R, width]`, True from column `steps[r]` on; the same few masks are asked for often."""
    return _staircase(tuple(steps.tolist()), width).to(device)


@lasting(32)
def _staircase(steps: tuple[int, ...], width: int) -> Tensor:
    return torch.arange(width, device="cpu") >= torch.tensor(steps, device="cpu")[:, None]
