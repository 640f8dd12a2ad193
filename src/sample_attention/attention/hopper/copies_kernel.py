"""Copies from global to shared memory by the warps that gather, 16 bytes of a row at a time."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy

from .work_kernel import TILE_ROWS

load_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
"""Its name since triton 3.9, and before."""

WARPS = gl.constexpr(4)
"""Warps of each of the three roles: one warp group."""

CHUNK = gl.constexpr(32)
"""Keys whose addresses a thread of the gathering warps holds at once."""


@gluon.jit
def key_offset(keys, pages, strides, PAGE_SIZE: gl.constexpr, WIDE: gl.constexpr):
    """Offsets in elements from the first key of a head to `keys` `[BLOCK_N]`."""
    if PAGE_SIZE == 0:
        if WIDE:
            keys = keys.to(gl.int64)
        offsets = keys * strides[2]
    else:
        page, slot = gl.load(pages + keys // PAGE_SIZE), keys % PAGE_SIZE
        if WIDE:
            page, slot = page.to(gl.int64), slot.to(gl.int64)
        offsets = page * strides[0] + slot * strides[2]
    return offsets


@gluon.jit
def copy_rows(buffer, offsets, base, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr):
    """Start copies of the rows at `offsets` `[BLOCK_N]` (in shared memory) from `base`."""
    lanes: gl.constexpr = HEAD_DIM // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [WARPS, 1], [1, 0])
    # [HEAD_DIM]
    d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    for i in gl.static_range(BLOCK_N // CHUNK):
        # [CHUNK]
        offs = offsets.slice(i * CHUNK, CHUNK).load(gl.SliceLayout(1, layout))
        # [CHUNK, HEAD_DIM]
        source = base + gl.multiple_of(offs, 8)[:, None] + d[None, :]
        load_async(buffer.slice(i * CHUNK, CHUNK), source)


@gluon.jit
def copy_queries(
    buffer, base, stride, to_row, row, first, last, HEAD_DIM: gl.constexpr, full
):  # fmt: skip
    """Start copies of the queries of a tile, zeros for rows outside `first .. last`."""
    lanes: gl.constexpr = HEAD_DIM // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [WARPS, 1], [1, 0])
    # [HEAD_DIM]
    d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    for i in gl.static_range(TILE_ROWS // CHUNK):
        # [CHUNK]
        rows = row + i * CHUNK + gl.arange(0, CHUNK, gl.SliceLayout(1, layout))
        # [CHUNK, HEAD_DIM]
        source = base + ((to_row + rows).to(gl.int64) * stride)[:, None] + d[None, :]
        # [CHUNK]
        valid = (rows >= first) & (rows < last)
        load_async(buffer.slice(i * CHUNK, CHUNK), source, mask=valid[:, None])
    async_copy.mbarrier_arrive(full, increment_count=False)
