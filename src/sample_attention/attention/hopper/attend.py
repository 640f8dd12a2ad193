"""Launches the Hopper kernel: as many programs as multiprocessors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from ...kernels.layout import LOG2E, needs_int64, page_table_stride
from ...plan import StripePlan
from ...problem import Problem, Sequences
from . import BLOCK_M
from .gather_kernel import gather_attend_kernel
from .merge_kernel import merge_splits_kernel
from .work_kernel import LAST_TILES

TILES = {
    64: {"BLOCK_N": 64, "STAGES": 8, "REGISTERS": 208, "GATHER_REGISTERS": 88},
    128: {"BLOCK_N": 64, "STAGES": 5, "REGISTERS": 208, "GATHER_REGISTERS": 88},
}
"""By head dim: keys in a tile, tiles in shared memory, registers of a thread by role."""


SPLIT_KEYS = 8192
"""Keys of a split, those of one program where the last rows are dense: a multiple of 128."""

MERGED_ROWS = 8
"""Rows that one program of `merge_splits_kernel` finishes."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
) -> tuple[Tensor, Tensor]:
    """Out like q `[B, H, Sq, D]`, and natural lse fp32 `[B, H, Sq]`."""
    sequences, pages = problem.sequences, problem.sequences.page_table
    q, k, v = (copyable(x) for x in (q, k, v))
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)
    if not sequences.uniform:  # rows of no sequence
        out.zero_()
        lse.fill_(-math.inf)
    splits = splits_of(sequences)
    split_out, split_lse = split_results(problem, splits)
    dense, num_segments = plan.dense.view(torch.int8), plan.counts.shape[2]
    counter = torch.zeros(1, dtype=torch.int32, device=q.device)
    tiles = triton.cdiv(sequences.max_q_len, BLOCK_M) + 1
    num_work = LAST_TILES.value * splits.total + (tiles - LAST_TILES.value) * len(sequences.table)
    num_work *= problem.num_heads
    launch: Any = gather_attend_kernel[(min(multiprocessors(q.device), num_work),)]
    launch(
        q, k, v, out, lse, split_out, split_lse, sequences.table, pages, plan.window, plan.indices,
        plan.offsets, plan.counts, dense, splits.ends, counter,
        q.stride()[:3], k.stride()[:3], v.stride()[:3], out.stride()[:3], lse.stride(1),
        page_table_stride(pages), tiles, num_segments, plan.segment, len(sequences.table),
        splits.most, splits.total, num_work, scale * LOG2E,
        NUM_KV_HEADS=problem.num_kv_heads, GROUP=problem.group_size, HEAD_DIM=problem.head_dim,
        PAGE_SIZE=sequences.page_size, WIDE=needs_int64(problem, k, v),
        ALIKE=k.stride() == v.stride(), SPLIT_KEYS=SPLIT_KEYS, num_warps=4,
        **TILES[problem.head_dim],
    )  # fmt: skip
    if splits.most > 1:
        strips = LAST_TILES.value * BLOCK_M // MERGED_ROWS
        merge: Any = merge_splits_kernel[(strips, problem.num_heads, len(sequences.table))]
        merge(
            split_out, split_lse, out, lse, sequences.table, dense, splits.ends, out.stride()[:3],
            lse.stride(1), splits.most, num_segments, plan.segment, NUM_HEADS=problem.num_heads,
            HEAD_DIM=problem.head_dim, SPLIT_KEYS=SPLIT_KEYS, ROWS=MERGED_ROWS, num_warps=4,
        )  # fmt: skip
    return out, lse


@dataclass(frozen=True)
class Splits:
    """How many programs share the keys of a dense tile.

    Attributes:
        most: splits of one sequence.
        total: of all sequences; a bound where the host does not know their lengths.
        ends: int32 `[N]`, splits of the sequences up to each; None: all have `most`.
    """

    most: int
    total: int
    ends: Tensor | None


def splits_of(sequences: Sequences) -> Splits:
    """The splits of each sequence; a few small launches where they differ."""
    most, count = -(-sequences.max_kv_len // SPLIT_KEYS), len(sequences.table)
    if most == 1 or count == 1 or sequences.uniform:
        return Splits(most, most * count, None)
    ends = ((sequences.table[:, 4] + (SPLIT_KEYS - 1)) // SPLIT_KEYS).cumsum(0, dtype=torch.int32)
    if sequences.host_rows is None:
        return Splits(most, most * count, ends)
    return Splits(most, sum(-(-row.kv_len // SPLIT_KEYS) for row in sequences.host_rows), ends)


def split_results(problem: Problem, splits: Splits) -> tuple[Tensor, Tensor]:
    """Room for SplitOut and SplitLse, see `merge_kernel`; none where nothing can be split."""
    total = splits.total if splits.most > 1 else 0
    shape = total, problem.num_heads, LAST_TILES.value, BLOCK_M, problem.head_dim
    out = torch.empty(shape, dtype=torch.float32, device=problem.device)
    return out, torch.empty(shape[:-1], dtype=torch.float32, device=problem.device)


def copyable(x: Tensor) -> Tensor:
    """`x`, or a copy of it where a row does not begin at a multiple of 16 elements.

    Rows are copied to shared memory 16 bytes at a time.
    """
    aligned = x.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in x.stride()[:-1])
    return x if aligned else x.contiguous()


def multiprocessors(device: torch.device) -> int:
    """How many programs run at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count
