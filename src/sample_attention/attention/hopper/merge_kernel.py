"""What the runs of a split tile find, and how it becomes one result: the one home of both.

RunOut `[runs, H, 2, 128, D]` holds what a run alone gives, RunLse `[runs, H, 2, 128]` the log2 of
the sum of its weights, both fp32, for each of the last tiles. They are joined in the order of keys.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .softmax_kernel import FLOOR, LN2
from .work_kernel import LAST_TILES, TILE_ROWS, find_tile, first_run


@gluon.jit
def find_slot(run, h, t, NUM_HEADS: gl.constexpr):
    """Where a tile's part of RunOut and RunLse lies, in tiles."""
    return (run * NUM_HEADS + h) * LAST_TILES + t


@gluon.jit
def write_run(RunOut, RunLse, slot, row, x, lse):
    """Write `x` `[rows, D]` and their log2-sum-exp2 to rows `row ..` of a slot, from registers."""
    layout: gl.constexpr = x.type.layout
    rows = gl.arange(0, x.shape[0], gl.SliceLayout(1, layout))
    d = gl.arange(0, x.shape[1], gl.SliceLayout(0, layout))
    at = slot.to(gl.int64) * TILE_ROWS + row
    gl.store(RunOut + at * x.shape[1] + rows[:, None] * x.shape[1] + d[None, :], x)
    gl.store(RunLse + at + gl.arange(0, x.shape[0], lse.type.layout), lse)


@gluon.jit(do_not_specialize=["lse_stride", "num_runs", "num_segments", "segment"])
def merge_runs_kernel(
    RunOut, RunLse, Out, Lse, Table, Dense, RunEnds, out_strides, lse_stride, num_runs,
    num_segments, segment, NUM_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, RUN: gl.constexpr,
    ROWS: gl.constexpr,
):  # fmt: skip
    """ROWS rows of one of the last tiles, where it was split; runs in the order of their keys."""
    lanes: gl.constexpr = HEAD_DIM // 4
    layout: gl.constexpr = gl.BlockedLayout(
        [1, 4], [32 // lanes, lanes], [gl.num_warps(), 1], [1, 0]
    )
    t, h, n = gl.program_id(0) % LAST_TILES, gl.program_id(1), gl.program_id(2)
    b, to_row, row, first, last, _, _, parts = find_tile(
        Table, Dense, n, h, t, num_segments, segment, NUM_HEADS, RUN
    )
    if parts > 1:
        d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
        of_tile = gl.program_id(0) // LAST_TILES * ROWS
        of_tile += gl.arange(0, ROWS, gl.SliceLayout(1, layout))
        slot = find_slot(first_run(RunEnds, n, num_runs), h, t, NUM_HEADS)
        start = slot.to(gl.int64) * TILE_ROWS + of_tile
        m = gl.full([ROWS], FLOOR, gl.float32, gl.SliceLayout(1, layout))
        total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, layout))
        acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, layout)
        for part in range(parts):
            at = start + part * (NUM_HEADS * LAST_TILES * TILE_ROWS)
            lse = gl.load(RunLse + at)
            x = gl.load(RunOut + at[:, None] * HEAD_DIM + d[None, :])
            m_new = gl.maximum(m, lse)
            shrink, weight = gl.exp2(m - m_new), gl.exp2(lse - m_new)
            acc = acc * shrink[:, None] + x * weight[:, None]
            total = total * shrink + weight
            m = m_new
        share = gl.where(total > 0, 1 / total, 0.0)
        rows = row + of_tile
        there = (rows >= first) & (rows < last)
        to = (to_row + rows).to(gl.int64)
        base = Out + b.to(gl.int64) * out_strides[0] + h.to(gl.int64) * out_strides[1]
        out = (acc * share[:, None]).to(Out.dtype.element_ty)
        gl.store(base + (to * out_strides[2])[:, None] + d[None, :], out, mask=there[:, None])
        head = (b * NUM_HEADS + h).to(gl.int64)
        gl.store(Lse + head * lse_stride + to, (m + gl.log2(total)) * LN2, mask=there)
