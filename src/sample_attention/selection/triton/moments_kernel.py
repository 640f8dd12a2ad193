"""Selection by mean and spread of the queries: ranks of all columns, and which of them are heavy.

    k ─► sums ─► q ─► moments ─► probe: sums of the ranks of regular probes, in parts
                                 rank: classes [segments, columns], bits of the heavy columns

Steps are eighths of an octave of a rank. What a segment's ranks sum to is estimated from its
regular probes, and classes are told apart within 16 octaves of the first heavy one: 256 bins.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loop_kernel import bound
from .column_mass_kernel import key_pointer, load_keys, open_limits, page_pointer

HEAVY_BIN = tl.constexpr(128)
"""Class of the first heavy columns."""

KEY_SHRINK = tl.constexpr(1 / 16)
"""Keys are multiplied by this before they are squared: squares of fp16 overflow from 256 on."""

FARTHEST = tl.constexpr(32767)
"""Segments whose first heavy class is about as many steps from a rank of 1 are dense."""


@triton.jit
def segment_rows(Table, n, g, size):
    """First row of segment g of sequence n, and past the last: positions, and where q has them."""
    kv_len = tl.load(Table + n * 5 + 4)
    offset = kv_len - tl.load(Table + n * 5 + 2)
    start = (offset // size + g) * size
    return tl.maximum(start, offset), tl.minimum(start + size, kv_len), offset


@triton.jit(do_not_specialize=["num_runs"])
def key_sums_kernel(
    K, Table, PageTable, KeySums, k_strides, page_table_stride, num_runs,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, RUN: tl.constexpr,
    STRIDE: tl.constexpr, RUNS: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sums of one key in STRIDE, up to each run of RUN keys, from the last multiple of RUNS on.

    fp32 `[N, Hkv, runs, BLOCK_D]`. One program per RUNS runs, key head and sequence. Where sums
    begin depends on the position alone, so that a longer prompt begins with the same ones.
    """
    first, h, n = tl.program_id(0) * RUNS, tl.program_id(1), tl.program_id(2)
    PER_RUN: tl.constexpr = RUN // STRIDE
    K = key_pointer(K, Table, n, h * GROUP, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    runs = tl.load(Table + n * 5 + 4) // RUN
    KeySums += (n * tl.num_programs(1) + h).to(tl.int64) * num_runs * BLOCK_D
    i, run, d = tl.arange(0, RUNS * PER_RUN), tl.arange(0, RUNS), tl.arange(0, BLOCK_D)
    keys = first * RUN + (i + 1) * STRIDE - 1
    k = load_keys(
        K, keys, keys < runs * RUN, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
    )
    of_run = tl.sum(tl.reshape(k.to(tl.float32), [RUNS, PER_RUN, BLOCK_D]), 1)
    at = (first + run)[:, None] * BLOCK_D + d[None, :]
    tl.store(KeySums + at, tl.cumsum(of_run, 0), mask=(first + run < runs)[:, None])


@triton.jit
def load_centre(
    KeySums, limit, n, kv_head, kv_heads, num_runs,
    BLOCK_D: tl.constexpr, RUN: tl.constexpr, STRIDE: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """Mean `[BLOCK_D]` of the sampled keys in the whole runs among the first `limit`; 0 of none."""
    runs, d, lane = limit // RUN, tl.arange(0, BLOCK_D), tl.arange(0, RUNS)
    KeySums += (n * kv_heads + kv_head).to(tl.int64) * num_runs * BLOCK_D
    some = d < tl.where(runs > 0, BLOCK_D, 0)
    sums = tl.load(KeySums + (runs - 1) * BLOCK_D + d, mask=some, other=0.0)
    ends = tl.maximum(runs - 1, 0) // RUNS  # sums that are whole
    for first in range(0, bound(ends), RUNS):
        last = (first + lane + 1) * RUNS - 1
        whole = (first + lane < ends)[:, None]
        at = last[:, None] * BLOCK_D + d[None, :]
        sums += tl.sum(tl.load(KeySums + at, mask=whole, other=0.0), 0)
    return sums / tl.maximum(runs * (RUN // STRIDE), 1)


@triton.jit(do_not_specialize=["num_segments", "num_runs"])
def moments_kernel(
    Q, Table, Always, Limits, KeySums, Dense, Means, Spreads, q_strides, num_segments, num_runs,
    half,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    BLOCK_M: tl.constexpr, ROW_STRIDE: tl.constexpr, RUN: tl.constexpr, STRIDE: tl.constexpr,
    RUNS: tl.constexpr,
):  # fmt: skip
    """What ranks the keys of a segment: `[N, H, G, BLOCK_D]`.

    Spreads are `half` times the variance of its queries; means theirs, less twice the spread times
    the mean key. A segment is dense that always is, has no sampled row or no finite moments.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    entry = (n * tl.num_programs(1) + h).to(tl.int64) * num_segments + g
    first, stop, offset = segment_rows(Table, n, g, SEGMENT)
    sampled = (stop - 1 - ROW_STRIDE // 2) // ROW_STRIDE * ROW_STRIDE + ROW_STRIDE // 2
    if (sampled < first) | (tl.load(Always + n * num_segments + g) != 0):
        tl.store(Dense + entry, 1)
        return
    centre = load_centre(
        KeySums, tl.load(Limits + n * num_segments + g), n, h // GROUP, tl.num_programs(1) // GROUP,
        num_runs, BLOCK_D, RUN, STRIDE, RUNS,
    )  # fmt: skip
    b = tl.load(Table + n * 5).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    p = first + tl.arange(0, BLOCK_M)
    there = (p < stop)[:, None] & (d < HEAD_DIM)[None, :]
    base = Q + b * q_strides[0] + h.to(tl.int64) * q_strides[1]
    at = (tl.load(Table + n * 5 + 1) - offset + p).to(tl.int64)[:, None] * q_strides[2]
    q = tl.load(base + at + d[None, :], mask=there, other=0.0).to(tl.float32)
    mean = tl.sum(q, 0) / (stop - first)
    away = tl.where(there, q - mean[None, :], 0.0)
    spread = tl.sum(away * away, 0) / (stop - first) * half
    mean -= 2 * spread * centre
    spread /= KEY_SHRINK * KEY_SHRINK
    mean, spread = mean.to(Means.dtype.element_ty), spread.to(Spreads.dtype.element_ty)
    tl.store(Means + entry * BLOCK_D + d, mean)
    tl.store(Spreads + entry * BLOCK_D + d, spread)
    sizes = tl.abs(mean.to(tl.float32)) + tl.abs(spread.to(tl.float32))
    if tl.max(tl.where(sizes < float("inf"), 0, 1)) > 0:
        tl.store(Dense + entry, 1)


@triton.jit
def lists_of_tile(
    Limits, Dense, i, start, first_segment, last_segment, num_segments,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Lists `i` of the segments from `start` on, of each of HEADS heads that share keys.

    Returns each one's head, segment, place among all that are made together, and how many columns
    it can hold: 0 where it is dense or there is none.
    """
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    n, part = tl.program_id(2), tl.program_id(1) % PARTS
    own = tl.minimum(part * HEADS + i % HEADS, GROUP - 1)
    head = tl.program_id(1) // PARTS * GROUP + own
    segment = start + i // HEADS
    row = (n * NUM_HEADS + head).to(tl.int64)
    inside = (part * HEADS + i % HEADS < GROUP) & (segment < last_segment)
    limit = open_limits(Limits, Dense, n, row, segment, inside, num_segments)
    return head, segment, row * (last_segment - first_segment) + segment - first_segment, limit


@triton.jit
def load_moments(Means, Spreads, row, there, BLOCK_D: tl.constexpr):
    """Means and spreads of the rows of a tile: `[rows, BLOCK_D]`, zero where there is none."""
    at = row[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    means = tl.load(Means + at, mask=there[:, None], other=0.0)
    return means, tl.load(Spreads + at, mask=there[:, None], other=0.0)


@triton.jit
def exponents(means, spreads, k):
    """Exponents of the ranks of a tile of keys: `[segments, keys]`."""
    small = (k * KEY_SHRINK).to(k.dtype)
    return tl.dot(spreads, tl.trans(small * small), tl.dot(means, tl.trans(k)))


@triton.jit
def distance_of_probes(limit, PROBES: tl.constexpr):
    """Distance of the regular probes: the smallest power of two at which they are not too many."""
    step = 1
    while step * PROBES < limit:
        step *= 2
    return step


@triton.jit
def octaves_of_probes(limits, largest, PROBES: tl.constexpr):
    """Log2 of `distance_of_probes` for many limits, none above `largest`."""
    octaves = tl.zeros(limits.shape, tl.int32)
    step = 1
    while step * PROBES < largest:
        octaves += (step * PROBES < limits).to(tl.int32)
        step *= 2
    return octaves


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def probe_kernel(
    Means, Spreads, K, Limits, Dense, Table, PageTable, Tops, Totals, k_strides, page_table_stride,
    first_segment, last_segment, num_segments, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, PROBES: tl.constexpr,
    PARTS: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Largest rank of a part of the regular probes of a tile of segments, and their sum.

    Segments of a tile share products as far as their probes lie equally far apart: the distance
    grows along the keys, as that of the segments that end there does.
    """
    part, n = tl.program_id(0) % PARTS, tl.program_id(2)
    start = first_segment + tl.program_id(0) // PARTS * BLOCK_S
    head, segment, scratch, limit = lists_of_tile(
        Limits, Dense, tl.arange(0, HEADS * BLOCK_S), start, first_segment, last_segment,
        num_segments, NUM_HEADS, GROUP, HEADS,
    )  # fmt: skip
    stop = tl.max(limit)
    row = (n * NUM_HEADS + head).to(tl.int64) * num_segments + segment
    means, spreads = load_moments(Means, Spreads, row, limit > 0, BLOCK_D)
    K = key_pointer(K, Table, n, tl.max(head), k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    between = ((1 << octaves_of_probes(limit, stop, PROBES)) - 1)[:, None]
    step = distance_of_probes(tl.min(tl.where(limit > 0, limit, stop)), PROBES)
    top = tl.full([HEADS * BLOCK_S], -FARTHEST, tl.float32)
    total = tl.zeros([HEADS * BLOCK_S], tl.float32)
    first = 0  # the probe that follows those of half the distance
    while first * step < stop:
        end = tl.minimum(stop, PROBES * step)
        for t in range(bound(first + part * BLOCK_N), bound(tl.cdiv(end, step)), PARTS * BLOCK_N):
            ends = (t + 1 + tl.arange(0, BLOCK_N)) * step
            k = load_keys(
                K, ends - 1, ends <= end, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
            )
            ends = tl.where(ends <= end, ends, stop + 1)[None, :]
            probed = ((ends & between) == 0) & (ends <= limit[:, None])
            steps = tl.floor(exponents(means, spreads, k) * (8 * scale))
            steps = tl.where(probed, steps, float("-inf"))
            top_new = tl.maximum(top, tl.max(steps, 1))
            sizes = tl.exp2(steps * 0.125 - (top_new * 0.125)[:, None])
            total = total * tl.exp2((top - top_new) * 0.125) + tl.sum(sizes, 1)
            top = top_new
        first = PROBES // 2
        step *= 2
    tl.store(Tops + scratch * PARTS + part, top, mask=limit > 0)
    tl.store(Totals + scratch * PARTS + part, total, mask=limit > 0)


@triton.jit
def first_heavy(
    Tops, Totals, scratch, limit, PROBES: tl.constexpr, PARTS: tl.constexpr,
    MOST_HEAVY: tl.constexpr,
):  # fmt: skip
    """The steps from which on columns of segments are heavy; 0 where `limit` is."""
    at = scratch[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    tops = tl.load(Tops + at, mask=(limit > 0)[:, None], other=0.0)
    totals = tl.load(Totals + at, mask=(limit > 0)[:, None], other=0.0)
    top = tl.max(tops, 1)
    total = tl.sum(totals * tl.exp2((tops - top[:, None]) / 8), 1)
    share = total * (1 << octaves_of_probes(limit, tl.max(limit), PROBES)) / MOST_HEAVY
    return tl.where(limit > 0, top + tl.ceil(8 * tl.log2(share)), 0.0)


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def rank_kernel(
    Means, Spreads, K, Limits, Dense, Table, PageTable, Tops, Totals, Class, Bits, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, pitch, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
    PROBES: tl.constexpr, PARTS: tl.constexpr, MOST_HEAVY: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Classes of CHUNK columns for a tile of segments, and a bit for each that is heavy.

    BLOCK_N divides the pitch: the last tile may write past a segment's limit.
    """
    n, chunks = tl.program_id(2), tl.cdiv(pitch, CHUNK)
    head, segment, scratch, limit = lists_of_tile(
        Limits, Dense, tl.arange(0, HEADS * BLOCK_S),
        first_segment + tl.program_id(0) // chunks * BLOCK_S, first_segment, last_segment,
        num_segments, NUM_HEADS, GROUP, HEADS,
    )  # fmt: skip
    start = tl.program_id(0) % chunks * CHUNK
    stop = tl.minimum(tl.max(limit), start + CHUNK)
    if start >= stop:
        return
    row = (n * NUM_HEADS + head).to(tl.int64) * num_segments + segment
    means, spreads = load_moments(Means, Spreads, row, limit > 0, BLOCK_D)
    K = key_pointer(K, Table, n, tl.max(head), k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = tl.load(Table + n * 5 + 4)
    heavy_from = first_heavy(Tops, Totals, scratch, limit, PROBES, PARTS, MOST_HEAVY)
    if start == 0:
        too_far = ~(tl.abs(heavy_from) < FARTHEST)  # as is a NaN, where ranks overflow
        tl.store(Dense + row, tl.full([HEADS * BLOCK_S], 1, tl.int8), mask=(limit > 0) & too_far)
    shift = (heavy_from - HEAVY_BIN - 256)[:, None]
    out = scratch[:, None] * pitch
    step = tl.arange(0, BLOCK_N)
    bit = (1 << step % 32)[None, :]
    for j in range(bound(start), bound(stop), BLOCK_N):
        keys = j + step
        k = load_keys(
            K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        # Between 256 and 512 the highest bits of the mantissa count whole steps: conversions would
        # take as long as exponentials.
        steps = exponents(means, spreads, k) * (8 * scale) - shift
        steps = tl.minimum(tl.maximum(steps, 256.0), 511.0)
        rank_class = (steps.to(tl.int32, bitcast=True) >> 15) & 255
        wanted = (j < limit)[:, None]
        tl.store(Class + out + keys[None, :], rank_class.to(tl.uint8), mask=wanted)
        heavy = tl.where(steps >= 256 + HEAVY_BIN, bit, 0)
        heavy = tl.sum(tl.reshape(heavy, [HEADS * BLOCK_S, BLOCK_N // 32, 32]), 2)
        word = j // 32 + tl.arange(0, BLOCK_N // 32)
        tl.store(Bits + scratch[:, None] * (pitch // 32) + word[None, :], heavy, mask=wanted)
