"""What the two methods share that hash: random directions, and lists for runs of rows.

Both let each row choose its keys by itself. A plan lists keys for a segment of rows, and the
kernels take no fewer than 16, so a segment of 16 rows keeps what any of its rows keeps, and each
row the rows of its segment up to itself: the smallest pattern that a plan can express and that
drops nothing the published one keeps. Densities are those of the plan.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .method import Heads

SEGMENT = 16
"""Rows that share a list."""


def directions(heads: Heads, count: int, seeds: list[int]) -> Tensor:
    """Normal random directions, drawn on the CPU so that devices agree: `[M, D, count]`."""
    random, shape = torch.Generator(), (heads.k.shape[1], count)
    drawn = [
        torch.randn(shape, generator=random.manual_seed(seed), dtype=torch.float32, device="cpu")
        for seed in seeds
    ]
    return torch.stack(drawn).to(heads.q)


def keys_of_segments(rows: Tensor, keys: Tensor, offset: int, buckets: int) -> Tensor:
    """The keys that share a bucket with any row of a segment: bool `[M, G, K]`.

    Args:
        rows: int64 `[M, R]`, bucket of each row.
        keys: int64 `[M, K]`, bucket of each key.
        offset: position of the first row; segments are aligned to positions.
        buckets: how many there are.
    """
    positions = torch.arange(offset, offset + rows.shape[1], device=rows.device)
    segment = positions // SEGMENT - offset // SEGMENT
    shape = len(rows), int((offset + rows.shape[1] - 1) // SEGMENT - offset // SEGMENT) + 1
    present = torch.zeros(*shape, buckets, dtype=torch.bool, device=rows.device)
    heads = torch.arange(len(rows), device=rows.device)[:, None]
    present[heads, segment, rows] = True
    return present.gather(2, keys[:, None].expand(-1, shape[1], -1))
