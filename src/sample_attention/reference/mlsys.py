"""The rule of v3, MLSys 2025: blocks of columns and of slashes, each to its own threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import MlsysConfig
from .attend import positions, probabilities
from .paper import fewest_holding

TAIL_ROWS = 128
"""Sampled rows at the end of each chunk."""


def select_mlsys(q: Tensor, k: Tensor, rule: MlsysConfig, scale: float | None = None) -> Tensor:
    """The mask that the rule selects: bool `[H, Sq, Skv]`.

    The last rows of each chunk choose, for each head, the fewest blocks of columns that hold
    `coverage` of their mass and the fewest slashes that hold `slash_coverage`. All chosen are
    united; a row for which nothing is chosen keeps the block of its own position.
    """
    p, j = positions(q, k)
    causal = (j <= p).expand(q.shape[0], -1, -1)
    if rule.dense:
        return causal
    prob, block, q_len = probabilities(q, k, scale), rule.key_block, len(p)
    row_block, key_block = p // block, j // block
    keep = torch.zeros_like(prob, dtype=torch.bool)
    for c in range(rule.chunks):
        end = (c + 1) * q_len // rule.chunks
        start = max(c * q_len // rule.chunks, end - TAIL_ROWS)
        if start == end:
            continue
        distance = p[start:end] - j
        for h, tail in enumerate(prob[:, start:end]):
            by_column = _sum_by(key_block.expand_as(tail), tail)
            by_slash = _sum_by((distance.clamp(min=0) // block), tail * (distance >= 0))
            columns = fewest_holding(by_column, rule.coverage * by_column.sum())
            slashes = fewest_holding(by_slash, rule.slash_coverage * by_slash.sum())
            keep[h] |= columns[key_block]
            for t in slashes.nonzero()[:, 0]:  # a slash crosses two blocks of each row of blocks
                keep[h] |= (row_block - key_block == t) | (row_block - key_block == t + 1)
    nothing = ~(keep & causal).any(-1, keepdim=True)
    return causal & (keep | (nothing & (row_block == key_block)))


def _sum_by(group: Tensor, x: Tensor) -> Tensor:
    size = int(group.max()) + 1
    return torch.zeros(size, dtype=x.dtype, device=x.device).scatter_add_(
        0, group.flatten(), x.flatten()
    )
