"""Stage 2 on the device: the class from which columns are kept, and the lists of what is kept."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_block(X, start, limit, pitch, BLOCK: tl.constexpr):
    """BLOCK entries of a row of `pitch`, which of them lie below `limit`, and their numbers.

    The mask ends at the pitch, a multiple of many entries, so that they are loaded many at a time;
    what lies between means nothing.
    """
    keys = start + tl.arange(0, BLOCK)
    return tl.load(X + keys, mask=keys < pitch, other=0), keys < limit, keys


@triton.jit
def sums_from(Class, Mass, limit, pitch, low, step, BLOCK: tl.constexpr):
    """Mass of all columns, and of those of classes >= low + step, low + 2 step, low + 3 step."""
    every = tl.zeros([BLOCK], tl.float32)
    one, two, three = every, every, every
    for j in range(0, limit, BLOCK):
        above, _, _ = load_block(Class, j, limit, pitch, BLOCK)
        mass, inside, _ = load_block(Mass, j, limit, pitch, BLOCK)
        above = above.to(tl.int32) - low
        mass = tl.where(inside, mass.to(tl.float32), 0.0)
        every += mass
        one += tl.where(above >= step, mass, 0.0)
        two += tl.where(above >= 2 * step, mass, 0.0)
        three += tl.where(above >= 3 * step, mass, 0.0)
    return tl.sum(every), tl.sum(one), tl.sum(two), tl.sum(three)


@triton.jit(do_not_specialize=["num_segments", "first_segment", "dense_prefix"])
def threshold_kernel(
    Class, Mass, Limits, Ends, Threshold, Counts, Dense, pitch, num_segments, first_segment,
    coverage, dense_above, dense_prefix,
    RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, NUM_CLASSES: tl.constexpr,
):  # fmt: skip
    """The highest class t such that the columns of classes >= t hold the share; dense if too many.

    One program per segment, head and sequence; those that are dense already stay so. A sum that is
    not finite makes a segment dense.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(1)
    entry = (n * num_heads + h) * num_segments + first_segment + g
    if tl.load(Dense + entry) != 0:
        return
    scratch = ((n * num_heads + h) * tl.num_programs(0) + g).to(tl.int64) * pitch
    Class += scratch
    Mass += scratch
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    # four quarters of the 256 classes, four quarters of the chosen one, and so on
    outside, one, two, three = sums_from(Class, Mass, limit, pitch, 0, 64, BLOCK)
    need = coverage - (1.0 - outside) if RESIDUAL else coverage * outside
    low = 64 * ((one >= need).to(tl.int32) + (two >= need) + (three >= need))
    step = 16
    while step > 0:
        _, one, two, three = sums_from(Class, Mass, limit, pitch, low, step, BLOCK)
        low += step * ((one >= need).to(tl.int32) + (two >= need) + (three >= need))
        step = step // 4
    threshold = tl.where(need > 0, low, NUM_CLASSES)
    count = tl.zeros([BLOCK], tl.int32)
    for j in range(0, limit, BLOCK):
        rank_class, inside, _ = load_block(Class, j, limit, pitch, BLOCK)
        count += ((rank_class.to(tl.int32) >= threshold) & inside).to(tl.int32)
    kept = tl.sum(count)
    sparse = (kept <= dense_above * limit) & (tl.abs(outside) < float("inf"))
    sparse = sparse & (tl.load(Ends + n * num_segments + first_segment + g) > dense_prefix)
    tl.store(Threshold + entry, threshold)
    tl.store(Counts + entry, tl.where(sparse, kept, 0))
    tl.store(Dense + entry, tl.where(sparse, 0, 1).to(tl.int8))


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def compact_kernel(
    Class, Limits, Threshold, Counts, Offsets, Indices, pitch, num_segments, first_segment,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the sorted positions of the classes >= threshold; one program per list."""
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(1)
    entry = (n * num_heads + h) * num_segments + first_segment + g
    if tl.load(Counts + entry) == 0:
        return
    Class += ((n * num_heads + h) * tl.num_programs(0) + g).to(tl.int64) * pitch
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    threshold = tl.load(Threshold + entry)
    Indices += tl.load(Offsets + entry)
    for j in range(0, limit, BLOCK):
        rank_class, inside, keys = load_block(Class, j, limit, pitch, BLOCK)
        keep = (rank_class.to(tl.int32) >= threshold) & inside
        place = tl.cumsum(keep.to(tl.int32), 0)
        tl.store(Indices + place - 1, keys, mask=keep)
        Indices += tl.sum(keep.to(tl.int32))


@triton.jit(do_not_specialize=["capacity", "num_segments", "first_segment", "lists", "per_head"])
def place_kernel(
    Counts, Dense, Offsets, Used, capacity, num_segments, first_segment, lists, per_head,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Where each list goes: one after another behind those before; dense where the room ends.

    One program for all. List i of the launch is segment `i % per_head` of a head and sequence.
    """
    used = tl.load(Used)
    for j in range(0, lists, BLOCK):
        i = j + tl.arange(0, BLOCK)
        entry = i // per_head * num_segments + first_segment + i % per_head
        count = tl.load(Counts + entry, mask=i < lists, other=0).to(tl.int64)
        stop = used + tl.cumsum(count, 0)
        fits = stop <= capacity
        tl.store(Offsets + entry, stop - count, mask=i < lists)
        tl.store(Counts + entry, tl.where(fits, count, 0).to(tl.int32), mask=i < lists)
        over = (i < lists) & (stop > capacity)
        tl.store(Dense + entry, tl.full([BLOCK], 1, tl.int8), mask=over)
        used += tl.sum(count)
    tl.store(Used, used)
