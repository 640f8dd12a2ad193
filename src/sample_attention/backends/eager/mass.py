"""Stage 1: the softmax of a few query rows over every key they see, reduced per key column."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_rows(q: Tensor, k: Tensor, positions: Tensor, scale: float) -> Tensor:
    """Causal softmax of the given rows.

    Args:
        q: `[R, D]`, fp32 or fp64.
        k: `[K, D]`, keys 0..K-1 of the sequence.
        positions: int64 `[R]` on the host, the last key that each row sees.
        scale: multiplies q.k.

    Returns:
        `[R, K]` probabilities, rows summing to 1.
    """
    scores = (q * scale) @ k.T
    first = int(positions.min()) + 1  # every row sees the keys left of this
    hidden = torch.arange(first, len(k)) > positions[:, None]
    scores[:, first:].masked_fill_(hidden.to(k.device), -torch.inf)
    return torch.softmax(scores, dim=-1)


def column_mass(prob: Tensor, edges: Tensor, runs: int, limit: int) -> Tensor:
    """Mean probability per key column over each of `runs` equal runs of rows.

    Args:
        prob: `[R, K]` probabilities; zeroed in place from each row's edge on.
        edges: int64 `[R]` on the host, first key of each row's window, which is not counted.
        runs: how many means to take; divides R.
        limit: columns of the result, at least the largest edge.

    Returns:
        `[runs, limit]`.
    """
    first, last = int(edges.min()), min(limit, prob.shape[1])
    inside = torch.arange(first, last) >= edges[:, None]
    prob[:, first:last].masked_fill_(inside.to(prob.device), 0.0)
    mass = prob[:, :last].unflatten(0, (runs, -1)).mean(1)
    return torch.nn.functional.pad(mass, (0, limit - last))


def row_lse(q: Tensor, k: Tensor, positions: Tensor, scale: float) -> Tensor:
    """Natural log-sum-exp of the causal scores of the given rows: `[R]`."""
    scores = (q * scale) @ k.T
    hidden = torch.arange(len(k)) > positions[:, None]
    scores.masked_fill_(hidden.to(k.device), -torch.inf)
    return torch.logsumexp(scores, dim=-1)
