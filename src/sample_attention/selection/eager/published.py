"""Selection once for all rows of a call: the two published rules."""

from __future__ import annotations

import torch
from torch import Tensor

from ...config import MlsysConfig, PaperConfig
from ..lists import SegmentLists
from ..rows import chunk_tail_rows, strided_rows
from .column_mass import GroupRows, column_mass
from .lists import smallest_set

CHUNK_ROWS = 128
"""Sampled rows per head held at once; bounds the memory of stage 1."""


def select_whole(rows: GroupRows, n: int, lists: SegmentLists, config: PaperConfig) -> None:
    """v1: strided rows of the whole call, the fewest columns that hold the share."""
    lo, hi = lists.starts(n)[0]
    positions = strided_rows(lo, hi, config.sample_stride)
    if len(positions) == 0:
        lists.dense[n, rows.heads.start : rows.heads.stop] = True
        return
    total = _total_mass(rows, positions)
    keep = smallest_set(total, config.coverage * total.sum(-1))
    finite = total.sum(-1).isfinite()
    for i, h in enumerate(rows.heads):
        if bool(finite[i]):
            lists.put(n, h, 0, keep[i].nonzero()[:, 0].int())
        else:
            lists.dense[n, h, 0] = True


def _total_mass(rows: GroupRows, positions: Tensor) -> Tensor:
    """Mean mass per column over the sampled rows, that in their windows too: `[G, K]`."""
    total = rows.k.new_zeros(len(rows.heads), len(rows.k))
    for some in positions.split(CHUNK_ROWS):
        mass = column_mass(rows.softmax(some), some + 1, 1, int(some.max()) + 1)[:, 0]
        total[:, : mass.shape[1]] += mass * (len(some) / len(positions))
    return total


def select_blocks(rows: GroupRows, n: int, lists: SegmentLists, config: MlsysConfig) -> None:
    """v3: 128-blocks of columns and of slashes from the tail of each chunk, united."""
    block, starts = config.key_block, lists.starts(n)
    columns, slashes, finite = _kept_blocks(rows, config)
    for i, h in enumerate(rows.heads):
        if not bool(finite[i]):
            lists.dense[n, h, : len(starts)] = True
            continue
        for g, (lo, _) in enumerate(starts):
            row_block = lo // block
            keep = columns[i, : row_block + 1] | slashes[i, : row_block + 1].flip(0)
            if not bool(keep.any()):
                keep[row_block] = True
            lists.put(n, h, g, keep.nonzero()[:, 0].int())


def _kept_blocks(rows: GroupRows, config: MlsysConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Kept blocks of columns and of slashes: bool `[G, blocks]`; and whether all was finite."""
    kv_len, block, device = len(rows.k), config.key_block, rows.k.device
    size = (len(rows.heads), -(-kv_len // block) + 1)
    columns = torch.zeros(size, dtype=torch.bool, device=device)
    slashes = torch.zeros(size, dtype=torch.bool, device=device)
    finite = torch.ones(len(rows.heads), dtype=torch.bool, device=device)
    for tail in chunk_tail_rows(rows.offset, kv_len, config.chunks):
        prob = rows.softmax(tail)
        finite &= prob.flatten(1).isfinite().all(1)
        keys = torch.arange(prob.shape[2], device=device)
        by_column = _sum_by(keys // block, prob.sum(1), size[1])
        columns |= smallest_set(by_column, config.coverage * by_column.sum(-1))
        distance = (tail[:, None].to(device) - keys).clamp_(min=0) // block
        by_slash = _sum_by(distance.flatten(), prob.flatten(1), size[1])
        kept = smallest_set(by_slash, config.slash_coverage * by_slash.sum(-1))
        slashes |= kept
        slashes[:, 1:] |= kept[:, :-1]  # a slash crosses two blocks of each row of blocks
    return columns, slashes, finite


def _sum_by(group: Tensor, x: Tensor, size: int) -> Tensor:
    """Sums of x `[G, M]` by group `[M]`: `[G, size]`."""
    return x.new_zeros(len(x), size).scatter_add_(1, group.expand_as(x), x)
