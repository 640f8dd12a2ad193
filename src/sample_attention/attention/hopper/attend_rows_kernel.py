"""The warps that attend: 64 rows of tile after tile, to keys that the others have gathered.

The scores of the next keys begin before the softmax of the present ones, so that products and
exponentials run side by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ...kernels.lse_kernel import FLOOR
from .copies_kernel import WARPS
from .handover_kernel import (
    BATCH,
    FIRST,
    HEAD,
    LAST,
    RESULT,
    ROW,
    SHIFT,
    SLOTS,
    TO_ROW,
    WHOLE,
    following,
    get,
)
from .merge_kernel import write_split
from .softmax_kernel import LN2, QUAD, rescaled, softmax

HALF = gl.constexpr(64)
"""Rows of a warp group that attends."""


class Results(NamedTuple):
    """Where results go, and the factor on scores; as in `gather_attend_kernel`."""

    out: Any
    lse: Any
    split_out: Any
    split_lse: Any
    out_strides: Any
    lse_stride: Any
    scale: Any


@gluon.jit
def scores(q, shared, stage, BLOCK_N: gl.constexpr):
    """Start `q k'` for the keys of a stage; accumulator `[HALF, BLOCK_N]`."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    # [HALF, BLOCK_N], [HEAD_DIM, BLOCK_N]
    zero = gl.zeros([HALF, BLOCK_N], gl.float32, s_layout)
    k = shared.k.index(stage).permute([1, 0])
    return warpgroup_mma(q, k, zero, use_acc=False, is_async=True)


@gluon.jit
def as_operand(weights, acc, shared):
    """Weights `[HALF, BLOCK_N]` as the left factor of a product that adds to `acc`."""
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    return gl.convert_layout(weights.to(shared.v.dtype), p_layout, assert_trivial=True)


@gluon.jit
def fold_step(
    acc, weights, shrink, m, total, q, shared, stage, phase, reach, scale,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Add `p v` while the scores of the next keys become their weights."""
    mbarrier.wait(shared.full.index(stage), phase)
    # [HALF, BLOCK_N]
    s = scores(q, shared, stage, BLOCK_N)
    p = as_operand(weights, acc, shared)
    # [HALF, HEAD_DIM]
    acc = rescaled(acc, shrink)
    acc = warpgroup_mma(p, shared.v.index(stage), acc, is_async=True)
    s = warpgroup_mma_wait(1, [s])
    # [HALF, BLOCK_N], [HALF, 4], [HALF, 4], [HALF, 4]
    weights, sums, m, shrink = softmax(s, m, reach, scale, BLOCK_N, MASKED)
    total = total * shrink + sums
    acc = warpgroup_mma_wait(0, [acc])
    mbarrier.arrive(shared.free.index(stage))
    stage, phase = following(stage, phase, STAGES)
    return acc, weights, shrink, m, total, stage, phase


@gluon.jit
def write_rows(out_base, stride, lse_base, x, lse, first, last):
    """Write `x` [HALF, HEAD_DIM] and their log2-sum-exp2, for rows `first .. last` of the HALF."""
    lanes: gl.constexpr = x.shape[1] // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [WARPS, 1], [1, 0])
    x = gl.convert_layout(x.to(out_base.dtype.element_ty), layout)
    # [HALF], [HEAD_DIM]
    rows = gl.arange(0, HALF, gl.SliceLayout(1, layout))
    d = gl.arange(0, x.shape[1], gl.SliceLayout(0, layout))
    valid = (rows >= first) & (rows < last)
    offs = rows.to(gl.int64) * stride
    gl.store(out_base + offs[:, None] + d[None, :], x, mask=valid[:, None])
    rows = gl.arange(0, HALF, lse.type.layout)
    gl.store(lse_base + rows, lse * LN2, mask=(rows >= first) & (rows < last))


@gluon.jit
def attend_rows(
    results, shared,
    PART: gl.constexpr, NUM_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Attend from rows `64 PART ..` of tile after tile; results go to Out and Lse.

    Those of one split of the keys go to SplitOut and SplitLse, from the registers as they are.
    """
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEAD_DIM, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    # [HALF], [4]
    quad_rows = gl.arange(0, HALF, gl.SliceLayout(1, QUAD))
    lane = gl.arange(0, 4, gl.SliceLayout(0, QUAD))
    stage = 0
    phase = 0
    tile_phase = 0
    mbarrier.wait(shared.tile_full, tile_phase)
    slots = get(shared.tile, SLOTS)
    while slots > 0:
        shift = get(shared.tile, SHIFT)
        first, last = get(shared.tile, FIRST), get(shared.tile, LAST)
        row = get(shared.tile, ROW) + PART * HALF
        b, h = get(shared.tile, BATCH).to(gl.int64), get(shared.tile, HEAD).to(gl.int64)
        to_row, result = get(shared.tile, TO_ROW).to(gl.int64), get(shared.tile, RESULT)
        mbarrier.arrive(shared.tile_free)
        steps = gl.cdiv(slots, BLOCK_N)
        if (steps > 1) & (shift + (steps - 1) * BLOCK_N >= row + HALF):
            # All of these keys lie right of the first half of the rows.
            mbarrier.wait(shared.full.index(stage), phase)
            mbarrier.arrive(shared.free.index(stage))
            stage, phase = following(stage, phase, STAGES)
            steps -= 1
        # Tiles of keys that every row sees, at most all but the last.
        open_steps = gl.minimum(gl.maximum(row + 1 - shift, 0) // BLOCK_N, steps - 1)
        # [HALF, 4]
        reach = (row - shift - (steps - 1) * BLOCK_N) + (quad_rows[:, None] - 2 * lane[None, :])
        mbarrier.wait(shared.q_full, tile_phase)
        # [HALF, HEAD_DIM]
        q = shared.q.slice(PART * HALF, HALF)
        mbarrier.wait(shared.full.index(stage), phase)
        # [HALF, BLOCK_N]
        s = scores(q, shared, stage, BLOCK_N)
        s = warpgroup_mma_wait(0, [s])
        mbarrier.arrive(shared.free.index(stage))
        stage, phase = following(stage, phase, STAGES)
        # [HALF, 4]
        m = gl.full([HALF, 4], FLOOR, gl.float32, QUAD)
        # [HALF, BLOCK_N], [HALF, 4], [HALF, 4], [HALF, 4]
        weights, total, m, shrink = softmax(s, m, reach, results.scale, BLOCK_N, True)
        # [HALF, HEAD_DIM]
        acc = gl.zeros([HALF, HEAD_DIM], gl.float32, o_layout)
        for _ in range(steps - 1 - open_steps):
            reach += BLOCK_N
            acc, weights, shrink, m, total, stage, phase = fold_step(
                acc, weights, shrink, m, total, q, shared, stage, phase, reach, results.scale,
                BLOCK_N, STAGES, True,
            )  # fmt: skip
        for _ in range(open_steps):
            acc, weights, shrink, m, total, stage, phase = fold_step(
                acc, weights, shrink, m, total, q, shared, stage, phase, reach, results.scale,
                BLOCK_N, STAGES, False,
            )  # fmt: skip
        mbarrier.arrive(shared.q_free)
        acc = rescaled(acc, shrink)
        mbarrier.wait(shared.full.index(stage), phase)
        p = as_operand(weights, acc, shared)
        acc = warpgroup_mma(p, shared.v.index(stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(shared.free.index(stage))
        stage, phase = following(stage, phase, STAGES)

        # [HALF]
        whole = gl.convert_layout(gl.sum(total, 1), s_rows, assert_trivial=True)
        top = gl.convert_layout(gl.max(m, 1), s_rows, assert_trivial=True)
        share = gl.convert_layout(gl.where(whole > 0, 1 / whole, 0.0), o_rows, assert_trivial=True)
        acc = acc * share[:, None]
        lse = top + gl.log2(whole)
        if result == WHOLE:
            at, strides = to_row + row, results.out_strides
            out_base = results.out + b * strides[0] + h * strides[1] + at * strides[2]
            lse_base = results.lse + (b * NUM_HEADS + h) * results.lse_stride + at
            write_rows(out_base, strides[2], lse_base, acc, lse, first - row, last - row)
        else:
            write_split(results.split_out, results.split_lse, result, PART * HALF, acc, lse)
        tile_phase ^= 1
        mbarrier.wait(shared.tile_full, tile_phase)
        slots = get(shared.tile, SLOTS)
