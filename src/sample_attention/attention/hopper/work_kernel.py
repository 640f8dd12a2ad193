"""Which rows and keys a program works on: the one place that knows of tiles and splits.

A tile is 128 rows of one head. The last ones of a prompt may be dense and would go through all keys
alone, as long as everything else together: their keys are split by SPLIT_KEYS, from key 0 on, each
split for a program of its own. Where a split begins does not depend on the call, so results do not
either.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ...kernels.loads_kernel import SEQUENCE_FIELDS
from ...problem import SequenceRow
from . import BLOCK_M

TILE_ROWS = gl.constexpr(BLOCK_M)
"""Rows of a tile; SPLIT_KEYS is a multiple of them: each row sees the first key of each split."""

LAST_TILES = gl.constexpr(2)
"""Tiles that can hold the dense tail of a prompt; there are always as many."""


class WorkItem(NamedTuple):
    """An item of work: sequence, heads, and which of a head's tiles, counted from the last.

    `part` is a split of the keys, counted in its sequence, and `split` the same over the batch.
    """

    n: Any
    kv_head: Any
    head: Any
    tile: Any
    part: Any
    split: Any


class RowTile(NamedTuple):
    """A tile of rows: where it lies, and what its rows see.

    Attributes:
        batch: batch row of the tensors.
        to_row: added to a position gives the row of q.
        row: first position of the tile, a multiple of its rows.
        first: position of its first row.
        last: position past its last row.
        entry: which list is theirs.
        every: they are dense.
        parts: splits of their keys; 0 without rows.
    """

    batch: Any
    to_row: Any
    row: Any
    first: Any
    last: Any
    entry: Any
    every: Any
    parts: Any


@gluon.jit
def read_sequence(Table, n):
    """Row n of Table int32 `[N, 5]` by name, as `load_sequence` does for Triton."""
    row = Table + n * SEQUENCE_FIELDS
    return SequenceRow(
        gl.load(row), gl.load(row + 1), gl.load(row + 2), gl.load(row + 3), gl.load(row + 4)
    )


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
        # [LANES]
        end = lanes * step + step - 1  # of a part
        below = gl.load(list_ptr + lo + end, mask=end < size, other=limit) < limit
        parts = gl.sum(below.to(gl.int32), 0)
        lo += parts * step
        size = gl.minimum(size - parts * step, step - 1)
    return lo


@gluon.jit
def first_split(SplitEnds, n, num_splits):
    """A sequence's first split, counted over the batch: `num_splits` each, or as SplitEnds says."""
    return n * num_splits if SplitEnds is None else gl.load(SplitEnds + n - 1, mask=n > 0, other=0)


@gluon.jit
def find_work(
    work, SplitEnds, num_tiles, num_splits, total_splits, num_sequences, lanes,
    NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, LANES: gl.constexpr,
):  # fmt: skip
    """The `WorkItem` of an item: query heads that share keys go side by side, heavy rows first.

    SplitEnds int32 `[N]`: splits of the sequences up to each; None: all have `num_splits`. The last
    rows of all heads come before all others, split after split: a dense one that ended last would
    be alone.
    """
    of_last = LAST_TILES * NUM_KV_HEADS * GROUP * total_splits
    is_last = work < of_last
    first_tile = gl.where(is_last, 0, LAST_TILES)
    tiles = gl.where(is_last, LAST_TILES, gl.maximum(num_tiles - LAST_TILES, 1))
    left = gl.where(is_last, work, work - of_last)
    g, left = left % GROUP, left // GROUP
    t, left = left % tiles + first_tile, left // tiles
    kv_head, split = left % NUM_KV_HEADS, left // NUM_KV_HEADS
    n = split
    if is_last:
        if SplitEnds is None:
            n = split // num_splits
        else:  # past the last split it is the last sequence, which has no such split
            n = gl.minimum(
                find_end(SplitEnds, num_sequences, split + 1, lanes, LANES), num_sequences - 1
            )
    part = gl.where(is_last, split - first_split(SplitEnds, n, num_splits), 0)
    return WorkItem(n, kv_head, kv_head * GROUP + g, t, part, split)


@gluon.jit
def find_tile(
    Table, Dense, n, h, t, num_segments, segment, NUM_HEADS: gl.constexpr, SPLIT_KEYS: gl.constexpr
):
    """The `RowTile` of sequence n and head h that is number t from the last."""
    sequence = read_sequence(Table, n)
    kv_len = sequence.kv_len
    offset = kv_len - sequence.q_len
    row = ((kv_len - 1) // TILE_ROWS - t) * TILE_ROWS
    first, last = gl.maximum(row, offset), gl.minimum(row + TILE_ROWS, kv_len)
    entry = (n * NUM_HEADS + h) * num_segments + first // segment - offset // segment
    every = gl.load(Dense + entry, mask=first < last, other=0) != 0
    parts = gl.where(every & (t < LAST_TILES), gl.cdiv(last, SPLIT_KEYS), 1)
    return RowTile(
        sequence.batch, sequence.q_start - offset, row, first, last, entry, every,
        gl.where(first < last, parts, 0),
    )  # fmt: skip
