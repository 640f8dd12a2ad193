"""Launches the Hopper kernel: as many programs as multiprocessors."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from ...plan import StripePlan
from ...problem import Problem
from ..triton.layout import LOG2E, needs_int64, page_table_stride
from . import BLOCK_M
from .gather_kernel import gather_attend_kernel

TILES = {
    64: {"BLOCK_N": 64, "STAGES": 8, "REGISTERS": 208, "GATHER_REGISTERS": 88},
    128: {"BLOCK_N": 64, "STAGES": 5, "REGISTERS": 208, "GATHER_REGISTERS": 88},
}
"""By head dim: keys in a tile, tiles in shared memory, registers of a thread by role.

Small tiles leave registers for the queries, and most of the shared memory waits for copies."""


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
    counter = torch.zeros(1, dtype=torch.int32, device=q.device)
    tiles = triton.cdiv(sequences.max_q_len, BLOCK_M) + 1
    num_tiles = tiles * problem.num_heads * len(sequences.table)
    launch: Any = gather_attend_kernel[(min(multiprocessors(q.device), num_tiles),)]
    launch(
        q, k, v, out, lse, sequences.table, pages, plan.window, plan.indices, plan.offsets,
        plan.counts, plan.dense.view(torch.int8), counter,
        q.stride()[:3], k.stride()[:3], v.stride()[:3], out.stride()[:3], lse.stride(1),
        page_table_stride(pages), tiles, plan.counts.shape[2], plan.segment, len(sequences.table),
        scale * LOG2E,
        NUM_KV_HEADS=problem.num_kv_heads, GROUP=problem.group_size, HEAD_DIM=problem.head_dim,
        PAGE_SIZE=sequences.page_size, WIDE=needs_int64(problem, k, v),
        ALIKE=k.stride() == v.stride(), num_warps=4, **TILES[problem.head_dim],
    )  # fmt: skip
    return out, lse


def copyable(x: Tensor) -> Tensor:
    """`x`, or a copy of it where a row does not begin at a multiple of 16 elements.

    Rows are copied to shared memory 16 bytes at a time.
    """
    aligned = x.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in x.stride()[:-1])
    return x if aligned else x.contiguous()


def multiprocessors(device: torch.device) -> int:
    """How many programs run at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count
