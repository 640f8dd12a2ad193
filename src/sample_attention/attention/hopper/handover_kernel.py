"""Handing tiles from the warps that gather to those that attend, through shared memory.

A tile is described by a few numbers, its queries lie in one buffer, its keys and values pass
through STAGES of them. Each has a barrier for full and one for free, whose phase turns with every
use.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .copies_kernel import WARPS

SLOTS, SHIFT, ROW, FIRST, LAST, BATCH, HEAD, TO_ROW, RESULT = map(gl.constexpr, range(9))
"""Where the numbers that describe a tile lie: see `describe`."""

FIELDS = gl.constexpr(16)
"""Room for these: a power of two."""

WHOLE = gl.constexpr(-1)
"""In place of a slot: the tile was not split, its results go to Out and Lse."""


class Shared(NamedTuple):
    """Shared memory of a program, and the barriers of those who fill and empty it.

    Attributes:
        tile: int32 `[FIELDS]`, the description of a tile.
        q: `[TILE_ROWS, HEAD_DIM]`.
        k: `[STAGES, BLOCK_N, HEAD_DIM]`.
        v: like k.
        tile_full: of `tile`; one arrival of the warps that gather.
        tile_free: one arrival of each half that attends.
        q_full: of `q`; arrivals of the threads that copied.
        q_free: like `tile_free`.
        full: of `k` and `v`, a barrier for each stage; like `q_full`.
        free: likewise; like `tile_free`.
    """

    tile: Any
    q: Any
    k: Any
    v: Any
    tile_full: Any
    tile_free: Any
    q_full: Any
    q_free: Any
    full: Any
    free: Any


@gluon.jit
def get(tile, field: gl.constexpr):
    """One number of a tile's description."""
    one: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    return gl.max(tile.slice(field, 1).load(one), 0)


@gluon.jit
def describe(tile, total, shift, row, first, last, b, h, to_row, slot):
    """Write a tile's description: `total` slots of keys (0: no more tiles), and where it lies.

    `slot`: of its results in SplitOut and SplitLse, or WHOLE.
    """
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    # [FIELDS]
    field = gl.arange(0, FIELDS, layout)
    x = gl.where(field == SLOTS, total, shift)
    x = gl.where(field == ROW, row, x)
    x = gl.where(field == FIRST, first, x)
    x = gl.where(field == LAST, last, x)
    x = gl.where(field == BATCH, b, x)
    x = gl.where(field == HEAD, h, x)
    x = gl.where(field == TO_ROW, to_row, x)
    x = gl.where(field == RESULT, slot, x)
    tile.store(x)


@gluon.jit
def following(stage, phase, STAGES: gl.constexpr):
    """The next stage, and the phase of its barriers."""
    stage += 1
    if stage == STAGES:
        stage = 0
        phase ^= 1
    return stage, phase


@gluon.jit
def barriers(count: gl.constexpr, arrivals: gl.constexpr):
    """`count` barriers that wait for `arrivals` each."""
    made = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(made.index(i), count=arrivals)
    return made
