"""Selection once for all rows of a call: the two published presets."""

from __future__ import annotations

import torch
from torch import Tensor

from ...selection.lists import SegmentLists
from ...selection.rows import chunk_tail_rows, strided_rows
from .filtering import smallest_set
from .mass import column_mass
from .segments import HeadRows

CHUNK_ROWS = 256
"""Sampled rows held at once; bounds the memory of stage 1."""


def select_whole(head: HeadRows, n: int, h: int, lists: SegmentLists) -> None:
    """v1: strided rows of the whole call, the fewest columns that hold the share."""
    config = lists.config
    (lo, hi), window = lists.starts(n)[0], config.window_for(len(head.k))
    positions = strided_rows(lo, hi, config.row_stride)
    if len(positions) == 0:
        lists.dense[n, h, 0] = True
        return
    total = head.k.new_zeros(hi)
    for rows in positions.split(CHUNK_ROWS):
        edges = (rows - window + 1).clamp(min=0) if config.residual else rows + 1
        mass = column_mass(head.softmax(rows), edges, 1, int(edges.max()))[0]
        total[: len(mass)] += mass * (len(rows) / len(positions))
    if not bool(total.sum().isfinite()):
        lists.dense[n, h, 0] = True
        return
    need = config.coverage - (1 - total.sum()) if config.residual else config.coverage * total.sum()
    lists.put(n, h, 0, smallest_set(total, need).nonzero()[:, 0].int())


def select_blocks(head: HeadRows, n: int, h: int, lists: SegmentLists) -> None:
    """v3: 128-blocks of columns and of slashes from the tail of each chunk, united."""
    config, starts = lists.config, lists.starts(n)
    block, num_blocks = config.key_block, -(-len(head.k) // config.key_block)
    device = head.k.device
    columns = torch.zeros(num_blocks, dtype=torch.bool, device=device)
    slashes = torch.zeros(num_blocks + 1, dtype=torch.bool, device=device)
    for rows in chunk_tail_rows(head.offset, len(head.k), config.chunk_tails or 1):
        prob = head.softmax(rows)
        if not bool(prob.isfinite().all()):
            lists.dense[n, h, : len(starts)] = True
            return
        keys = torch.arange(prob.shape[1], device=device)
        by_column = _sum_by(keys // block, prob.sum(0), num_blocks)
        columns |= smallest_set(by_column, config.coverage * by_column.sum())
        distance = (rows[:, None].to(device) - keys).clamp_(min=0) // block
        by_slash = _sum_by(distance.flatten(), prob.flatten(), num_blocks)
        kept = smallest_set(by_slash, (config.slash_coverage or 1.0) * by_slash.sum())
        slashes[:-1] |= kept
        slashes[1:] |= kept  # a slash crosses two blocks of each row of blocks
    for g, (lo, _) in enumerate(starts):
        row_block = lo // block
        keep = columns[: row_block + 1] | slashes[: row_block + 1].flip(0)
        if not bool(keep.any()):
            keep[row_block] = True
        lists.put(n, h, g, keep.nonzero()[:, 0].int())


def _sum_by(group: Tensor, x: Tensor, size: int) -> Tensor:
    return x.new_zeros(size).scatter_add_(0, group, x)
