"""Which rows and keys a program works on: the one place that knows of tiles and runs.

A tile is 128 rows of one head. The last ones of a prompt may be dense and would go through all keys
alone, as long as everything else together: their keys are split into runs of RUN, from key 0 on,
each for a program of its own. Where a run begins does not depend on the call, so results do not
either.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

TILE_ROWS = gl.constexpr(128)
"""Rows of a tile; RUN is a multiple of them, so that each row sees the first key of each run."""

LAST_TILES = gl.constexpr(2)
"""Tiles that can hold the dense tail of a prompt; there are always as many."""


@gluon.jit
def find_end(list_ptr, count, limit, lanes, LANES: gl.constexpr):
    """Entries of a sorted list that are smaller than `limit`: each step leaves one part in LANES.

    Lists of one tile's own rows end below it, which the last entry tells.
    """
    last = gl.load(list_ptr + gl.maximum(count - 1, 0), mask=count > 0, other=0)
    lo = gl.where(last < limit, count, 0)
    size = count - lo
    while size > 0:
        step = gl.cdiv(size, LANES)
        end = lanes * step + step - 1  # of a part
        below = gl.load(list_ptr + lo + end, mask=end < size, other=limit) < limit
        parts = gl.sum(below.to(gl.int32), 0)
        lo += parts * step
        size = gl.minimum(size - parts * step, step - 1)
    return lo


@gluon.jit
def first_run(RunEnds, n, num_runs):
    """The first run of a sequence, counted over the batch: `num_runs` each, or as RunEnds says."""
    return n * num_runs if RunEnds is None else gl.load(RunEnds + n - 1, mask=n > 0, other=0)


@gluon.jit
def find_work(
    work, RunEnds, num_tiles, num_runs, total_runs, num_sequences, lanes,
    NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, LANES: gl.constexpr,
):  # fmt: skip
    """Sequence, key head, head, tile (counted from the last) and run of an item of work.

    The run is counted in its sequence and over the batch. RunEnds `[N]`: runs of the sequences up
    to each; None: all have `num_runs`. Query heads that share keys run side by side, heavy rows
    first. The last rows of all heads come before all others, run after run: a dense one that ended
    last would run alone.
    """
    of_last = LAST_TILES * NUM_KV_HEADS * GROUP * total_runs
    is_last = work < of_last
    first_tile = gl.where(is_last, 0, LAST_TILES)
    tiles = gl.where(is_last, LAST_TILES, gl.maximum(num_tiles - LAST_TILES, 1))
    left = gl.where(is_last, work, work - of_last)
    g, left = left % GROUP, left // GROUP
    t, left = left % tiles + first_tile, left // tiles
    kv_head, run = left % NUM_KV_HEADS, left // NUM_KV_HEADS
    n = run
    if is_last:
        if RunEnds is None:
            n = run // num_runs
        else:  # past the last run it is the last sequence, which has no such run
            n = gl.minimum(
                find_end(RunEnds, num_sequences, run + 1, lanes, LANES), num_sequences - 1
            )
    part = gl.where(is_last, run - first_run(RunEnds, n, num_runs), 0)
    return n, kv_head, kv_head * GROUP + g, t, part, run


@gluon.jit
def find_tile(
    Table, Dense, n, h, t, num_segments, segment, NUM_HEADS: gl.constexpr, RUN: gl.constexpr
):
    """Where a tile lies, and what its rows see.

    Batch, from position to row of q, first position of the tile, first and past the last of its
    rows, which list is theirs, whether they are dense, and in how many parts: 0 without rows.
    """
    b, q_start = gl.load(Table + n * 5), gl.load(Table + n * 5 + 1)
    q_len, kv_len = gl.load(Table + n * 5 + 2), gl.load(Table + n * 5 + 4)
    offset = kv_len - q_len
    row = ((kv_len - 1) // TILE_ROWS - t) * TILE_ROWS
    first, last = gl.maximum(row, offset), gl.minimum(row + TILE_ROWS, kv_len)
    entry = (n * NUM_HEADS + h) * num_segments + first // segment - offset // segment
    every = gl.load(Dense + entry, mask=first < last, other=0) != 0
    parts = gl.where(every & (t < LAST_TILES), gl.cdiv(last, RUN), 1)
    return b, q_start - offset, row, first, last, entry, every, gl.where(first < last, parts, 0)
