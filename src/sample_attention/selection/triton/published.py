"""v3 on the device: blocks of columns and of slashes from the tail of each chunk, united."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...kernels.layout import LOG2E, page_table_stride
from .column_mass import Keys, score
from .lists import Lists, fewest
from .published_kernel import block_mass_kernel
from .row_tables import SCORED_TOGETHER, RowTable

ROWS_AT_ONCE = 2**25
"""Flags of kept blocks that are held at once, about."""


MASS_LAUNCH = {"num_warps": 8}
"""With 4 warps the probabilities of a tile do not fit in the registers."""


def fill_blocks(q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists) -> None:
    """Fill the lists of every row of blocks."""
    by_column, by_slash = _block_mass(q, keys, config, lists.geometry.exact)
    lists.dense.logical_or_(~by_column.sum((2, 3)).isfinite()[..., None])
    columns = _kept(by_column, config.coverage)
    slashes = _kept(by_slash, config.slash_coverage or 1.0)
    slashes[..., 1:] |= slashes[..., :-1].clone()  # a slash crosses two blocks of a row of blocks
    kv_len = keys.problem.sequences.table[:, 4]
    offset = kv_len - keys.problem.sequences.table[:, 2]
    n, heads, blocks = columns.shape
    step = max(1, ROWS_AT_ONCE // (n * heads * blocks))
    for first in range(0, lists.counts.shape[2], step):
        segments = range(first, min(first + step, lists.counts.shape[2]))
        row = torch.arange(segments.start, segments.stop, device=q.device)
        row = row + (offset // config.key_block)[:, None]  # [N, G]
        distance = row[..., None] - torch.arange(blocks, device=q.device)
        index = distance.clamp(0, blocks - 1)[:, None].expand(-1, heads, -1, -1)
        on_slash = slashes[:, :, None].expand(index.shape).gather(3, index)
        keep = (columns[:, :, None] | on_slash) & (distance >= 0)[:, None]
        keep |= ~keep.any(-1, keepdim=True) & (distance == 0)[:, None]
        # a shorter sequence has fewer rows of blocks, and the lists have room for no more
        keep &= (row * config.key_block < kv_len[:, None])[:, None, :, None]
        lists.keep(keep, segments)


def _block_mass(
    q: Tensor, keys: Keys, config: SampleAttentionConfig, rows: RowTable
) -> tuple[Tensor, Tensor]:
    """Sampled mass per block of keys and per block of distances: fp32 `[N, H, chunks, blocks]`."""
    problem, block = keys.problem, config.key_block
    chunks, blocks = rows.at.shape[1], -(-problem.sequences.max_kv_len // block)
    n, heads = len(rows.at), problem.num_heads
    slots = (SCORED_TOGETHER + block - 2) // block + 2
    columns = torch.empty(n, heads, chunks, blocks, dtype=torch.float32, device=q.device)
    slashes = torch.empty(n, heads, chunks, blocks, slots, dtype=torch.float32, device=q.device)
    nearest = (rows.position[..., 0] - (block - 1)).div(block, rounding_mode="floor").int()
    pages = problem.sequences.page_table
    launch: Any = block_mass_kernel[(blocks, chunks * heads, n)]
    launch(
        q, keys.k, rows.at, rows.position, score(q, rows, keys).lse, nearest,
        problem.sequences.table, pages, columns, slashes, q.stride()[:3], keys.k.stride()[:3],
        page_table_stride(pages), keys.scale * LOG2E, **keys.constants(), BLOCK_N=block,
        SLOTS=slots, **MASS_LAUNCH,
    )  # fmt: skip
    return columns, _by_distance(slashes, nearest)


def _by_distance(slashes: Tensor, nearest: Tensor) -> Tensor:
    """Sum what blocks of keys found at each distance, per block of distances.

    Slot i of key block j is block `nearest - j + i` of distances.
    """
    blocks, slots = slashes.shape[3:]
    b = torch.arange(blocks, device=slashes.device)[:, None]
    j = nearest[..., None, None] - b + torch.arange(slots, device=slashes.device)  # [N, C, b, i]
    found = slashes.gather(3, j.clamp(0, blocks - 1).long()[:, None].expand(slashes.shape))
    return found.masked_fill(((j < 0) | (j >= blocks))[:, None], 0.0).sum(-1)


def _kept(mass: Tensor, share: float) -> Tensor:
    """Blocks that any chunk keeps to hold its share: bool `[N, H, blocks]`."""
    return fewest(mass, share * mass.sum(-1)).any(2)
