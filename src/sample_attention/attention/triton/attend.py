"""Launches the attention kernel: layouts, tiles and the order of work."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from ...kernels.layout import LOG2E, needs_int64, padded_dim, page_table_stride
from ...plan import StripePlan
from ...problem import Problem
from .attend_kernel import attend_kernel


def attend(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
) -> tuple[Tensor, Tensor]:
    """Out like q `[B, H, Sq, D]`, and natural lse fp32 `[B, H, Sq]`."""
    sequences, pages = problem.sequences, problem.sequences.page_table
    filled = sequences.uniform
    out = (torch.empty if filled else torch.zeros)(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:3], -math.inf, dtype=torch.float32, device=q.device)
    block_m = min(128, plan.segment)
    tile = tile_shape(problem.head_dim, block_m, _capability(q), paged=pages is not None)
    tail_tiles = triton.cdiv(plan.dense_tail, block_m) + 1 if plan.dense_tail else 0
    tiles = triton.cdiv(sequences.max_q_len, block_m) + 1 + tail_tiles
    launch: Any = attend_kernel[(tiles, problem.num_heads, len(sequences.table))]
    launch(
        q, k, v, out, lse, sequences.table, pages, plan.window, plan.indices, plan.offsets,
        plan.counts, plan.dense.view(torch.int8),
        q.stride()[:3], k.stride()[:3], v.stride()[:3], out.stride()[:3], lse.stride(1),
        page_table_stride(pages),
        plan.counts.shape[2], plan.segment, plan.dense_tail, tail_tiles, scale * LOG2E,
        NUM_HEADS=problem.num_heads, GROUP=problem.group_size, HEAD_DIM=problem.head_dim,
        BLOCK_D=padded_dim(problem.head_dim), BLOCK_M=block_m,
        ALIGN=plan.window_alignment, KEY_BLOCK=plan.key_block,
        LISTS_LEFT=plan.segment == block_m == plan.window_alignment, PAGE_SIZE=sequences.page_size,
        WIDE=needs_int64(problem, k, v), ALIKE=k.stride() == v.stride(), **tile,
    )  # fmt: skip
    return out, lse


def tile_shape(
    head_dim: int, block_m: int, capability: tuple[int, int], *, paged: bool = False
) -> dict[str, int]:
    """Keys in a tile, warps, pipeline stages, and the most registers of a thread.

    On an H100 half of the registers for each of two blocks beats all of them for one: while a block
    starts or ends, the other computes. TFLOP/s on computed pairs at 32K and 128K (head dim 128,
    32/8 heads, lists of 12 and 6 % of the keys), keys x warps x stages: 64 x 8 x 3 375 and 455;
    with all registers 64 x 8 x 6 337 and 402, 128 x 8 x 4 325 and 383, 64 x 4 x 5 202 and 249.
    On other GPUs nothing was measured. A paged cache takes one
    stage more, in which the page is looked up; with fewer, the loads of keys wait for the lookup.
    """
    if block_m < 64:
        return {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2 + paged}
    if head_dim <= 128 and capability[0] == 9:
        return {"BLOCK_N": 64, "num_warps": 8, "num_stages": 3 + paged, "maxnreg": 128}
    return {"BLOCK_N": 64, "num_warps": 8, "num_stages": 2 + paged}


def _capability(x: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)
