"""A plan from blocks of keys: what a method keeps of each, for every segment of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidConfig
from ..plan import StripePlan, segment_starts
from ..problem import Problem
from .heads import Heads, heads_of


def planned(
    q: Tensor, k: Tensor, problem: Problem, scale: float, block: tuple[int, int],
    keep: Callable[[Heads], Tensor],
) -> StripePlan:  # fmt: skip
    """The plan of what a method keeps, and of every row's own segment.

    Args:
        q: `[B, H, Sq, D]`.
        k: `[B, Hkv, Skv, D]`.
        problem: where the sequences lie.
        scale: multiplies q.k.
        block: rows per segment, keys per block: blocks never straddle a segment's first row.
        keep: bool `[M, G, ceil(Skv / keys)]` for some heads; what is not causal is ignored.
    """
    rows, (segment, key_block) = problem.sequences.rows(), block
    firsts = [[lo for lo, _ in segment_starts(kv - n, kv, segment)] for _, _, n, _, kv in rows]
    shape = (len(rows), problem.num_heads, max(map(len, firsts)))
    counts = torch.zeros(shape, dtype=torch.int32, device=q.device)
    dense = torch.zeros(shape, dtype=torch.bool, device=q.device)
    lists = list[Tensor]()
    for n, starts in enumerate(firsts):
        left = torch.tensor(starts, device=q.device)[:, None] // segment * segment
        for heads in heads_of(q, k, problem, n, scale, len(starts) * (rows[n][4] // key_block + 1)):
            kept = keep(heads)
            selectable = torch.arange(kept.shape[-1], device=q.device) * key_block < left
            kept &= selectable
            at = n, slice(heads.first, heads.first + len(kept)), slice(len(starts))
            dense[at] = (kept | ~selectable).all(-1) | ~heads.finite[:, None]
            kept &= ~dense[at][..., None]
            counts[at] = kept.sum(-1, dtype=torch.int32)
            lists.append((kept.flatten().nonzero()[:, 0] % kept.shape[-1]).int())
    ends = counts.flatten().long().cumsum(0)
    return StripePlan(
        indices=torch.cat(lists), offsets=(ends - counts.flatten()).view(shape), counts=counts,
        dense=dense, sequences=problem.sequences, segment=segment,
        window=torch.ones(len(rows), dtype=torch.int32, device=q.device),
        window_alignment=segment, key_block=key_block,
    )  # fmt: skip


def check_block(name: str, size: int) -> None:
    """Check that rows or keys can be taken in blocks of a size.

    Raises:
        InvalidConfig: not a power of two from 16 up, the tiles of the kernels.
    """
    if size < 16 or size & (size - 1):
        raise InvalidConfig(f"{name} must be a power of two from 16 up, got {size!r}")
