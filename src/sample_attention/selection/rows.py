"""Which query rows are looked at: strided, tails of chunks, held out.

Strided rows are tied to absolute positions, so that a prompt prefilled in chunks samples the same
rows as one prefilled at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Config
from .geometry import stride_of

TAIL_ROWS = 128
"""Rows at the end of each chunk that the rule of v3 samples."""


def strided_rows(lo: int, hi: int, stride: int) -> Tensor:
    """Positions p in [lo, hi) with `p % stride == stride // 2`: int64 `[R]`."""
    first = lo + (stride // 2 - lo) % stride
    return torch.arange(first, max(first, hi), stride, device="cpu")


def chunk_tail_rows(offset: int, kv_len: int, num_chunks: int) -> list[Tensor]:
    """Positions of the last rows of each equal chunk of the call: int64 `[<=128]` per chunk."""
    q_len = kv_len - offset
    num_chunks = min(num_chunks, q_len)  # more chunks than rows: every row is one
    ends = [offset + (c + 1) * q_len // num_chunks for c in range(num_chunks)]
    starts = [offset, *ends[:-1]]
    return [
        torch.arange(max(start, end - TAIL_ROWS), end, device="cpu")
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]


def held_out_rows(lo: int, hi: int, config: Config) -> Tensor:
    """Evenly spaced positions in [lo, hi) that the strided sampling does not use: int64 `[R]`.

    R is `held_out_rows` of the check, or fewer in a segment with fewer unsampled rows.
    """
    free = torch.arange(lo, hi, device="cpu")
    stride = stride_of(config)
    if stride is not None:
        unsampled = free % stride != stride // 2
        free = free[unsampled] if bool(unsampled.any()) else free
    count = min(config.check.held_out_rows, len(free))
    middles = (torch.arange(count, device="cpu") * 2 + 1) * len(free) // (2 * max(count, 1))
    return free[middles]
