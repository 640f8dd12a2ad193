"""Stage 2 on the device: the class from which columns are kept, and the lists of what is kept."""

from __future__ import annotations

import triton
import triton.language as tl

BINS = tl.constexpr(16)
"""Classes are found in two steps of 16: 256 in all."""


@triton.jit
def class_sums(
    Class, Mass, limit, chosen, BLOCK: tl.constexpr, FINE: tl.constexpr
):  # fmt: skip
    """Mass per bin `[BINS]`: of 16 classes each, or of the 16 classes of bin `chosen`."""
    bins = tl.arange(0, BINS)
    sums = tl.zeros([BINS, BLOCK], tl.float32)
    for j in range(0, limit, BLOCK):
        keys = j + tl.arange(0, BLOCK)
        rank_class = tl.load(Class + keys, mask=keys < limit, other=0).to(tl.int32)
        mass = tl.load(Mass + keys, mask=keys < limit, other=0.0).to(tl.float32)
        of = rank_class - chosen * BINS if FINE else rank_class // BINS
        sums += tl.where(of[None, :] == bins[:, None], mass[None, :], 0.0)
    return tl.sum(sums, 1)


@triton.jit
def from_the_top(sums):
    """Entry b: the sum of the bins b, b + 1, ... `[BINS]`."""
    bins = tl.arange(0, BINS)
    return tl.sum(tl.where(bins[None, :] >= bins[:, None], sums[None, :], 0.0), 1)


@triton.jit
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
    sums = class_sums(Class, Mass, limit, 0, BLOCK, False)
    outside = tl.sum(sums)
    coarse = from_the_top(sums)
    need = coverage - (1.0 - outside) if RESIDUAL else coverage * outside
    chosen = BINS - 1 - tl.sum((coarse < need).to(tl.int32))
    above = tl.sum(tl.where(tl.arange(0, BINS) == chosen + 1, coarse, 0.0))
    fine = above + from_the_top(class_sums(Class, Mass, limit, chosen, BLOCK, True))
    # the last bin holds what is missing, whatever the sums round to
    short = tl.minimum(tl.sum((fine < need).to(tl.int32)), BINS - 1)
    threshold = tl.where(chosen < 0, 0, chosen * BINS + BINS - 1 - short)
    threshold = tl.where(need > 0, threshold, NUM_CLASSES)
    count = tl.zeros([BLOCK], tl.int32)
    for j in range(0, limit, BLOCK):
        keys = j + tl.arange(0, BLOCK)
        rank_class = tl.load(Class + keys, mask=keys < limit, other=0).to(tl.int32)
        count += ((rank_class >= threshold) & (keys < limit)).to(tl.int32)
    kept = tl.sum(count)
    sparse = (kept <= dense_above * limit) & (tl.abs(outside) < float("inf"))
    sparse = sparse & (tl.load(Ends + n * num_segments + first_segment + g) > dense_prefix)
    tl.store(Threshold + entry, threshold)
    tl.store(Counts + entry, tl.where(sparse, kept, 0))
    tl.store(Dense + entry, tl.where(sparse, 0, 1).to(tl.int8))


@triton.jit
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
        keys = j + tl.arange(0, BLOCK)
        rank_class = tl.load(Class + keys, mask=keys < limit, other=0).to(tl.int32)
        keep = (rank_class >= threshold) & (keys < limit)
        place = tl.cumsum(keep.to(tl.int32), 0)
        tl.store(Indices + place - 1, keys, mask=keep)
        Indices += tl.sum(keep.to(tl.int32))


@triton.jit
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
