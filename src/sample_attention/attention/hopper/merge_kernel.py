"""The results of the splits of a tile, and how they become one: the one home of both.

SplitOut `[splits, H, 2, 128, D]` holds the output of a split alone, SplitLse `[splits, H, 2, 128]`
the log2 of the sum of its weights, both fp32, for each of the last tiles. They are joined in the
order of keys.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ...kernels.lse_kernel import FLOOR
from .softmax_kernel import LN2
from .work_kernel import LAST_TILES, TILE_ROWS, find_tile, first_split


@gluon.jit
def find_slot(split, h, t, NUM_HEADS: gl.constexpr):
    """Where a tile's part of SplitOut and SplitLse lies, in tiles."""
    return (split * NUM_HEADS + h) * LAST_TILES + t


@gluon.jit
def write_split(SplitOut, SplitLse, slot, row, x, lse):
    """Write `x` `[rows, D]` and their log2-sum-exp2 to rows `row ..` of a slot, from registers."""
    layout: gl.constexpr = x.type.layout
    # [rows], [D]
    rows = gl.arange(0, x.shape[0], gl.SliceLayout(1, layout))
    d = gl.arange(0, x.shape[1], gl.SliceLayout(0, layout))
    at = slot.to(gl.int64) * TILE_ROWS + row
    gl.store(SplitOut + at * x.shape[1] + rows[:, None] * x.shape[1] + d[None, :], x)
    gl.store(SplitLse + at + gl.arange(0, x.shape[0], lse.type.layout), lse)


@gluon.jit(do_not_specialize=["lse_stride", "num_splits", "num_segments", "segment"])
def merge_splits_kernel(
    SplitOut, SplitLse, Out, Lse, Table, Dense, SplitEnds, out_strides, lse_stride, num_splits,
    num_segments, segment,
    NUM_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, SPLIT_KEYS: gl.constexpr, ROWS: gl.constexpr,
):  # fmt: skip
    """Out and Lse of the last tiles where they were split: splits in the order of their keys.

    One program per ROWS rows of a tile, head and sequence.
    """
    lanes: gl.constexpr = HEAD_DIM // 4
    layout: gl.constexpr = gl.BlockedLayout(
        [1, 4], [32 // lanes, lanes], [gl.num_warps(), 1], [1, 0]
    )
    t, h, n = gl.program_id(0) % LAST_TILES, gl.program_id(1), gl.program_id(2)
    tile = find_tile(Table, Dense, n, h, t, num_segments, segment, NUM_HEADS, SPLIT_KEYS)
    if tile.parts > 1:
        # [HEAD_DIM], [ROWS]
        d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
        of_tile = gl.program_id(0) // LAST_TILES * ROWS
        of_tile += gl.arange(0, ROWS, gl.SliceLayout(1, layout))
        slot = find_slot(first_split(SplitEnds, n, num_splits), h, t, NUM_HEADS)
        start = slot.to(gl.int64) * TILE_ROWS + of_tile
        # [ROWS], [ROWS, HEAD_DIM]
        m = gl.full([ROWS], FLOOR, gl.float32, gl.SliceLayout(1, layout))
        total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, layout))
        acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, layout)
        for part in range(tile.parts):
            # [ROWS]
            offs = start + part * (NUM_HEADS * LAST_TILES * TILE_ROWS)
            lse = gl.load(SplitLse + offs)
            # [ROWS, HEAD_DIM]
            x = gl.load(SplitOut + offs[:, None] * HEAD_DIM + d[None, :])
            # [ROWS]
            m_new = gl.maximum(m, lse)
            shrink, weight = gl.exp2(m - m_new), gl.exp2(lse - m_new)
            acc = acc * shrink[:, None] + x * weight[:, None]
            total = total * shrink + weight
            m = m_new
        # [ROWS]
        share = gl.where(total > 0, 1 / total, 0.0)
        rows = tile.row + of_tile
        valid = (rows >= tile.first) & (rows < tile.last)
        to = (tile.to_row + rows).to(gl.int64)
        base = Out + tile.batch.to(gl.int64) * out_strides[0] + h.to(gl.int64) * out_strides[1]
        # [ROWS, HEAD_DIM]
        out = (acc * share[:, None]).to(Out.dtype.element_ty)
        gl.store(base + (to * out_strides[2])[:, None] + d[None, :], out, mask=valid[:, None])
        head = (tile.batch * NUM_HEADS + h).to(gl.int64)
        gl.store(Lse + head * lse_stride + to, (m + gl.log2(total)) * LN2, mask=valid)
