"""Stage 2 on the device: the bin from which columns are kept, and the lists of these.

bins ─► threshold ─► flag: counts, 32 columns to a word ─► offsets ─► compact: lists

N sequences, H heads, G segments, G' segments of one launch. A word is 32 bits, for a column each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loop_kernel import bound


@triton.jit
def load_block(X, start, limit, pitch, BLOCK: tl.constexpr):
    """BLOCK entries of a row of `pitch`, and which of them lie below `limit`: `[BLOCK]` each.

    The mask ends at the pitch, a multiple of many entries, so that they are loaded many at a time;
    what lies between means nothing.
    """
    # [BLOCK]
    keys = start + tl.arange(0, BLOCK)
    return tl.load(X + keys, mask=keys < pitch, other=0), keys < limit


@triton.jit
def sums_from(Bins, Mass, limit, pitch, low, step, BLOCK: tl.constexpr):
    """Mass of all columns, and of those of bins >= low + step, low + 2 step, low + 3 step."""
    # [BLOCK]
    every = tl.zeros([BLOCK], tl.float32)
    one, two, three = every, every, every
    for j in range(0, bound(limit), BLOCK):
        # [BLOCK]
        above, _ = load_block(Bins, j, limit, pitch, BLOCK)
        mass, inside = load_block(Mass, j, limit, pitch, BLOCK)
        above = above.to(tl.int32) - low
        mass = tl.where(inside, mass.to(tl.float32), 0.0)
        every += mass
        one += tl.where(above >= step, mass, 0.0)
        two += tl.where(above >= 2 * step, mass, 0.0)
        three += tl.where(above >= 3 * step, mass, 0.0)
    return tl.sum(every), tl.sum(one), tl.sum(two), tl.sum(three)


@triton.jit
def mass_needed(outside, coverage, limit, tighten_below):
    """The mass that columns have to hold of rows with `outside` beyond the window.

    With fewer than `tighten_below` columns less may be lost. The window counts.
    """
    fewer = tl.minimum(limit / tighten_below, 1.0)
    coverage = 1.0 - (1.0 - coverage) * tl.sqrt(fewer)
    return coverage - (1.0 - outside)


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def threshold_kernel(
    Bins, Mass, Limits, Always, Threshold, Dense, pitch, num_segments, first_segment, Coverage,
    tighten_below,
    BLOCK: tl.constexpr, NUM_BINS: tl.constexpr,
):  # fmt: skip
    """Threshold int32 `[N, H, G]`: highest bin t such that the columns of bins >= t hold the share.

    One program per segment, head and sequence; those that are dense already stay so. A sum that is
    not finite makes a segment dense.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(1)
    entry = (n * num_heads + h) * num_segments + first_segment + g
    if tl.load(Dense + entry) != 0:
        return
    place = ((n * num_heads + h) * tl.num_programs(0) + g).to(tl.int64) * pitch
    Bins += place
    Mass += place
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    # four quarters of the 256 bins, four quarters of the chosen one, and so on
    outside, one, two, three = sums_from(Bins, Mass, limit, pitch, 0, 64, BLOCK)
    need = mass_needed(outside, tl.load(Coverage + h), limit, tighten_below)
    low = 64 * ((one >= need).to(tl.int32) + (two >= need) + (three >= need))
    step = 16
    while step > 0:
        _, one, two, three = sums_from(Bins, Mass, limit, pitch, low, step, BLOCK)
        low += step * ((one >= need).to(tl.int32) + (two >= need) + (three >= need))
        step = step // 4
    sparse = tl.load(Always + n * num_segments + first_segment + g) == 0
    sparse = sparse & (tl.abs(outside) < float("inf"))
    tl.store(Threshold + entry, tl.where(need > 0, low, NUM_BINS))
    tl.store(Dense + entry, tl.where(sparse, 0, 1).to(tl.int8))


@triton.jit
def count_bits(words):
    """How many bits of each word of 32 are set."""
    words = words.to(tl.uint32, bitcast=True)
    pairs = words - ((words >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return ((((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def clear_from(words, at, limit):
    """Words number `at`, without the bits of columns from `limit` on."""
    left = tl.minimum(tl.maximum(limit - at * 32, 0), 32)
    return tl.where(left < 32, words & ((1 << (left & 31)) - 1), words)


@triton.jit
def list_columns(Bits, limit, Out, room, BLOCK: tl.constexpr):
    """Write the columns below `limit` whose bit is set, sorted, as far as there is room.

    Returns how many there are. In every turn each word writes its lowest bit and clears it: nothing
    is done per column.
    """
    used = 0
    for start in range(0, bound(tl.cdiv(limit, 32)), BLOCK):
        # [BLOCK]
        at = start + tl.arange(0, BLOCK)
        words = clear_from(tl.load(Bits + at, mask=at * 32 < limit, other=0), at, limit)
        counts = count_bits(words)
        offs = used + tl.cumsum(counts, 0) - counts
        used += tl.sum(counts)
        for _ in range(0, bound(tl.max(counts))):
            # [BLOCK]
            lowest = words & -words
            column = at * 32 + count_bits(lowest - 1)
            tl.store(Out + offs, column, mask=(words != 0) & (offs < room))
            words = words ^ lowest
            offs += 1
    return used


@triton.jit
def block_of_peaks(Peaks, block, limit):
    """Words of `peak_kernel` for blocks of 16 columns, and whether all of a block is kept.

    Neither the first block is, nor one for a peak beyond the limit.
    """
    left = tl.minimum(tl.maximum(limit - block * 16, 0), 16)
    words = tl.load(Peaks + block, mask=(block >= 0) & (left > 0), other=0)
    high = (words >> 16) & ((1 << left) - 1)
    return words, (high != 0) & (block > 0)


@triton.jit
def load_peaks(Peaks, at, limit):
    """Words number `at`: peaks, and all columns of a block with a high peak and of those beside."""
    _, before = block_of_peaks(Peaks, 2 * at - 1, limit)
    lower, one = block_of_peaks(Peaks, 2 * at, limit)
    upper, two = block_of_peaks(Peaks, 2 * at + 1, limit)
    _, after = block_of_peaks(Peaks, 2 * at + 2, limit)
    words = (lower & 0xFFFF) | (upper << 16)
    words |= tl.where(before | one | two, 0xFFFF, 0)
    return words | tl.where(one | two | after, -0x10000, 0)


@triton.jit
def flag_columns(Bins, Bits, Peaks, limit, pitch, threshold, BLOCK: tl.constexpr):
    """Write a bit for every column below the limit of a bin >= threshold, and count them.

    `Peaks` and the blocks around them are kept whatever their bin is; or it is None.

    Four bins, the bytes of a word, are compared at once: by their lower seven bits in a
    subtraction that cannot borrow from the next byte, then by the highest.
    """
    Bins = Bins.to(tl.pointer_type(tl.uint32))
    # [BLOCK / 4]
    place = tl.arange(0, BLOCK // 4) % 8 * 4
    # [BLOCK / 32]
    word = tl.arange(0, BLOCK // 32)
    lower = (threshold & 127).to(tl.uint32) * 0x01010101
    counts = tl.zeros([BLOCK // 32], tl.int32)
    some = threshold < 256
    stop = tl.where(some, limit, 0) if Peaks is None else limit
    for j in range(0, bound(stop), BLOCK):
        # [BLOCK / 4]
        fours, _ = load_block(Bins, j // 4, limit, pitch // 4, BLOCK // 4)
        reached = (fours | 0x80808080) - lower
        reached = tl.where(threshold < 128, fours | reached, fours & reached) & 0x80808080
        nibbles = (reached * 0x00204081) >> 28  # the four flags, side by side
        # [BLOCK / 32]
        flags = tl.sum(tl.reshape(nibbles << place, [BLOCK // 32, 8]), 1)
        flags = flags.to(tl.int32, bitcast=True)
        if Peaks is not None:
            flags = tl.where(some, flags, 0) | load_peaks(Peaks, j // 32 + word, limit)
        flags = clear_from(flags, j // 32 + word, limit)
        tl.store(Bits + j // 32 + word, flags, mask=j + word * 32 < limit)
        counts += count_bits(flags)
    return tl.sum(counts)


@triton.jit
def close_list(Counts, Dense, entry, count, limit, dense_above):
    """Store how many columns a list keeps, or that it is dense as it would keep too many."""
    sparse = count <= dense_above * limit
    tl.store(Counts + entry, tl.where(sparse, count, 0))
    tl.store(Dense + entry, tl.where(sparse, 0, 1).to(tl.int8))


@triton.jit(do_not_specialize=["words", "num_segments", "first_segment"])
def flag_kernel(
    Bins, Limits, Threshold, Counts, Dense, Bits, pitch, words, num_segments, first_segment,
    dense_above,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Bits int32 `[N, H, G', words]` of the columns of bins >= Threshold, and their Counts.

    One program per segment, head and sequence: dense if too many columns would be kept. The pitch
    is a multiple of 4.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(1)
    entry = (n * num_heads + h) * num_segments + first_segment + g
    if tl.load(Dense + entry) != 0:
        return
    place = ((n * num_heads + h) * tl.num_programs(0) + g).to(tl.int64)
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    threshold = tl.load(Threshold + entry)
    Bins += place * pitch
    Bits += place * words
    count = flag_columns(Bins, Bits, None, limit, pitch, threshold, BLOCK)
    close_list(Counts, Dense, entry, count, limit, dense_above)


@triton.jit(do_not_specialize=["capacity", "num_segments", "first_segment", "lists", "per_head"])
def offsets_kernel(
    Counts, Dense, Offsets, Used, capacity, num_segments, first_segment, lists, per_head,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Offsets int64 `[N, H, G]`: one list after another behind those before; dense without room.

    One program for all. List i of the launch is segment `i % per_head` of a head and sequence.
    Used int64 `[1]` has the entries of all lists so far.
    """
    used = tl.load(Used)
    for j in range(0, bound(lists), BLOCK):
        # [BLOCK]
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


@triton.jit(do_not_specialize=["words", "num_segments", "first_segment"])
def compact_kernel(
    Bits, Limits, Counts, Offsets, Indices, words, num_segments, first_segment, BLOCK: tl.constexpr
):  # fmt: skip
    """Indices int32 `[capacity]`: the columns that have a bit, from each list's offset on.

    One program per segment, head and sequence.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(1)
    entry = (n * num_heads + h) * num_segments + first_segment + g
    count = tl.load(Counts + entry)
    if count == 0:
        return
    Bits += ((n * num_heads + h) * tl.num_programs(0) + g).to(tl.int64) * words
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    list_columns(Bits, limit, Indices + tl.load(Offsets + entry), count, BLOCK)
