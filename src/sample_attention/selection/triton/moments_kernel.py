"""Selection by mean and variance of the queries: ranks of all columns, and which of them are heavy.

    k ─► key sums ─► q ─► moments ─► rank sums: of regular sampled keys, in parts
                                     ranks: bins [segments, columns], bits of the heavy columns

Steps are eighths of an octave of a rank. The sum of a segment's ranks is estimated from its regular
sampled keys, and ranks are told apart within 16 octaves of the first heavy one: 256 bins.

N sequences, H heads, G segments, G' segments of one launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loads_kernel import (
    key_pointer,
    load_keys,
    load_sequence,
    page_pointer,
    segment_rows,
)
from ...kernels.loop_kernel import bound
from .tile_kernel import list_tile, sampled_octaves, sampled_step

RANK_BINS = tl.constexpr(256)
"""Bins of ranks by moments."""

HEAVY_BIN = tl.constexpr(128)
"""Bin of the first heavy columns."""

KEY_SHRINK = tl.constexpr(1 / 16)
"""Keys are multiplied by this before they are squared: squares of fp16 overflow from 256 on."""

FARTHEST_STEPS = tl.constexpr(32767)
"""Segments whose first heavy bin is about as many steps from a rank of 1 are dense."""


@triton.jit(do_not_specialize=["num_tiles"])
def key_sums_kernel(
    K, Table, PageTable, KeySums, k_strides, page_table_stride, num_tiles,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, KEY_TILE: tl.constexpr,
    CENTRE_STRIDE: tl.constexpr, TILES: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """KeySums fp32 `[N, Hkv, tiles, BLOCK_D]`: of one key in CENTRE_STRIDE, up to each KEY_TILE.

    From the last multiple of TILES tiles on. One program per TILES tiles, key head and sequence.
    Where sums begin depends on the position alone, so that a longer prompt begins with the same
    ones.
    """
    first, h, n = tl.program_id(0) * TILES, tl.program_id(1), tl.program_id(2)
    PER_TILE: tl.constexpr = KEY_TILE // CENTRE_STRIDE
    K = key_pointer(K, Table, n, h * GROUP, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    tiles = load_sequence(Table, n).kv_len // KEY_TILE
    KeySums += (n * tl.num_programs(1) + h).to(tl.int64) * num_tiles * BLOCK_D
    # [TILES * PER_TILE], [TILES], [BLOCK_D]
    i, tile, d = tl.arange(0, TILES * PER_TILE), tl.arange(0, TILES), tl.arange(0, BLOCK_D)
    keys = first * KEY_TILE + (i + 1) * CENTRE_STRIDE - 1
    # [TILES * PER_TILE, BLOCK_D]
    k = load_keys(
        K, keys, keys < tiles * KEY_TILE, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
    )
    # [TILES, BLOCK_D]
    sums = tl.sum(tl.reshape(k.to(tl.float32), [TILES, PER_TILE, BLOCK_D]), 1)
    offs = (first + tile)[:, None] * BLOCK_D + d[None, :]
    tl.store(KeySums + offs, tl.cumsum(sums, 0), mask=(first + tile < tiles)[:, None])


@triton.jit
def load_centre(
    KeySums, limit, n, kv_head, kv_heads, num_tiles,
    BLOCK_D: tl.constexpr, KEY_TILE: tl.constexpr, CENTRE_STRIDE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Mean `[BLOCK_D]` of the keys that count in the whole tiles below `limit`; 0 of none."""
    # [BLOCK_D], [TILES]
    tiles, d, lane = limit // KEY_TILE, tl.arange(0, BLOCK_D), tl.arange(0, TILES)
    KeySums += (n * kv_heads + kv_head).to(tl.int64) * num_tiles * BLOCK_D
    some = d < tl.where(tiles > 0, BLOCK_D, 0)
    sums = tl.load(KeySums + (tiles - 1) * BLOCK_D + d, mask=some, other=0.0)
    ends = tl.maximum(tiles - 1, 0) // TILES  # sums that are whole
    for first in range(0, bound(ends), TILES):
        # [TILES]
        last = (first + lane + 1) * TILES - 1
        # [TILES, BLOCK_D]
        whole = (first + lane < ends)[:, None]
        offs = last[:, None] * BLOCK_D + d[None, :]
        sums += tl.sum(tl.load(KeySums + offs, mask=whole, other=0.0), 0)
    return sums / tl.maximum(tiles * (KEY_TILE // CENTRE_STRIDE), 1)


@triton.jit(do_not_specialize=["num_segments", "num_tiles"])
def moments_kernel(
    Q, Table, Always, Limits, KeySums, Dense, Means, Variances, q_strides, num_segments, num_tiles,
    half,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    BLOCK_M: tl.constexpr, SAMPLE_STRIDE: tl.constexpr, KEY_TILE: tl.constexpr,
    CENTRE_STRIDE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Means and Variances `[N, H, G, BLOCK_D]` of the queries of a segment, which rank its keys.

    Variances are `half` times those of the queries; means theirs, less twice that times the mean
    key. A segment is dense that always is, has no sampled row or no finite moments. One program
    per segment, head and sequence.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    entry = (n * tl.num_programs(1) + h).to(tl.int64) * num_segments + g
    first, stop, offset = segment_rows(Table, n, g, SEGMENT)
    sampled = (stop - 1 - SAMPLE_STRIDE // 2) // SAMPLE_STRIDE * SAMPLE_STRIDE + SAMPLE_STRIDE // 2
    if (sampled < first) | (tl.load(Always + n * num_segments + g) != 0):
        tl.store(Dense + entry, 1)
        return
    # [BLOCK_D]
    centre = load_centre(
        KeySums, tl.load(Limits + n * num_segments + g), n, h // GROUP, tl.num_programs(1) // GROUP,
        num_tiles, BLOCK_D, KEY_TILE, CENTRE_STRIDE, TILES,
    )  # fmt: skip
    sequence = load_sequence(Table, n)
    d = tl.arange(0, BLOCK_D)
    # [BLOCK_M]
    p = first + tl.arange(0, BLOCK_M)
    base = Q + sequence.batch.to(tl.int64) * q_strides[0] + h.to(tl.int64) * q_strides[1]
    # [BLOCK_M, BLOCK_D]
    valid = (p < stop)[:, None] & (d < HEAD_DIM)[None, :]
    offs = (sequence.q_start - offset + p).to(tl.int64)[:, None] * q_strides[2]
    q = tl.load(base + offs + d[None, :], mask=valid, other=0.0).to(tl.float32)
    # [BLOCK_D]
    mean = tl.sum(q, 0) / (stop - first)
    # [BLOCK_M, BLOCK_D]
    away = tl.where(valid, q - mean[None, :], 0.0)
    # [BLOCK_D]
    variance = tl.sum(away * away, 0) / (stop - first) * half
    mean -= 2 * variance * centre
    variance /= KEY_SHRINK * KEY_SHRINK
    mean, variance = mean.to(Means.dtype.element_ty), variance.to(Variances.dtype.element_ty)
    tl.store(Means + entry * BLOCK_D + d, mean)
    tl.store(Variances + entry * BLOCK_D + d, variance)
    sizes = tl.abs(mean.to(tl.float32)) + tl.abs(variance.to(tl.float32))
    if tl.max(tl.where(sizes < float("inf"), 0, 1)) > 0:
        tl.store(Dense + entry, 1)


@triton.jit
def load_moments(Means, Variances, row, valid, BLOCK_D: tl.constexpr):
    """Means and variances of a tile of segments: `[segments, BLOCK_D]`, zero outside `valid`."""
    # [segments, BLOCK_D]
    offs = row[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    means = tl.load(Means + offs, mask=valid[:, None], other=0.0)
    return means, tl.load(Variances + offs, mask=valid[:, None], other=0.0)


@triton.jit
def exponents(means, variances, k):
    """Exponents of the ranks of a tile of keys: `[segments, keys]`."""
    # [keys, BLOCK_D]
    small = (k * KEY_SHRINK).to(k.dtype)
    return tl.dot(variances, tl.trans(small * small), tl.dot(means, tl.trans(k)))


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def rank_sum_kernel(
    Means, Variances, K, Limits, Dense, Table, PageTable, RankMax, RankSum, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
    SAMPLED_KEYS: tl.constexpr, PARTS: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """RankMax, RankSum fp32 `[N, H, G', PARTS]`: largest rank of regular sampled keys, their sum.

    One program per part of the keys of BLOCK_S segments, HEADS heads that share keys and sequence.
    Segments of a tile share products as far as their sampled keys lie equally far apart: the
    distance grows along the keys, as that of the segments that end there does.
    """
    part, n = tl.program_id(0) % PARTS, tl.program_id(2)
    start = first_segment + tl.program_id(0) // PARTS * BLOCK_S
    # [HEADS * BLOCK_S]
    lists = list_tile(
        Limits, Dense, tl.arange(0, HEADS * BLOCK_S), start, first_segment, last_segment,
        num_segments, NUM_HEADS, GROUP, HEADS,
    )  # fmt: skip
    limit = lists.limit
    stop = tl.max(limit)
    row = (n * NUM_HEADS + lists.head).to(tl.int64) * num_segments + lists.segment
    # [HEADS * BLOCK_S, BLOCK_D]
    means, variances = load_moments(Means, Variances, row, limit > 0, BLOCK_D)
    K = key_pointer(K, Table, n, tl.max(lists.head), k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    # [HEADS * BLOCK_S, 1]
    between = ((1 << sampled_octaves(limit, stop, SAMPLED_KEYS)) - 1)[:, None]
    step = sampled_step(tl.min(tl.where(limit > 0, limit, stop)), SAMPLED_KEYS)
    # [HEADS * BLOCK_S]
    top = tl.full([HEADS * BLOCK_S], -FARTHEST_STEPS, tl.float32)
    total = tl.zeros([HEADS * BLOCK_S], tl.float32)
    first = 0  # the sampled key that follows those of half the distance
    while first * step < stop:
        end = tl.minimum(stop, SAMPLED_KEYS * step)
        for t in range(bound(first + part * BLOCK_N), bound(tl.cdiv(end, step)), PARTS * BLOCK_N):
            # [BLOCK_N]
            ends = (t + 1 + tl.arange(0, BLOCK_N)) * step
            # [BLOCK_N, BLOCK_D]
            k = load_keys(
                K, ends - 1, ends <= end, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
            )
            # [1, BLOCK_N]
            ends = tl.where(ends <= end, ends, stop + 1)[None, :]
            # [HEADS * BLOCK_S, BLOCK_N]
            sampled = ((ends & between) == 0) & (ends <= limit[:, None])
            steps = tl.floor(exponents(means, variances, k) * (8 * scale))
            steps = tl.where(sampled, steps, float("-inf"))
            # [HEADS * BLOCK_S]
            top_new = tl.maximum(top, tl.max(steps, 1))
            # [HEADS * BLOCK_S, BLOCK_N]
            sizes = tl.exp2(steps * 0.125 - (top_new * 0.125)[:, None])
            total = total * tl.exp2((top - top_new) * 0.125) + tl.sum(sizes, 1)
            top = top_new
        first = SAMPLED_KEYS // 2
        step *= 2
    tl.store(RankMax + lists.place * PARTS + part, top, mask=limit > 0)
    tl.store(RankSum + lists.place * PARTS + part, total, mask=limit > 0)


@triton.jit
def first_heavy(
    RankMax, RankSum, place, limit, SAMPLED_KEYS: tl.constexpr, PARTS: tl.constexpr,
    MOST_HEAVY: tl.constexpr,
):  # fmt: skip
    """The steps `[segments]` from which on columns are heavy; 0 where `limit` is."""
    # [segments, PARTS]
    offs = place[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    tops = tl.load(RankMax + offs, mask=(limit > 0)[:, None], other=0.0)
    totals = tl.load(RankSum + offs, mask=(limit > 0)[:, None], other=0.0)
    # [segments]
    top = tl.max(tops, 1)
    total = tl.sum(totals * tl.exp2((tops - top[:, None]) / 8), 1)
    share = total * (1 << sampled_octaves(limit, tl.max(limit), SAMPLED_KEYS)) / MOST_HEAVY
    return tl.where(limit > 0, top + tl.ceil(8 * tl.log2(share)), 0.0)


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def rank_kernel(
    Means, Variances, K, Limits, Dense, Table, PageTable, RankMax, RankSum, Bins, Bits, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, pitch, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
    SAMPLED_KEYS: tl.constexpr, PARTS: tl.constexpr, MOST_HEAVY: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Bins uint8 `[N, H, G', pitch]` of columns, Bits int32 `[N, H, G', pitch / 32]` of heavy ones.

    One program per CHUNK columns of BLOCK_S segments, HEADS heads that share keys and sequence.
    BLOCK_N divides the pitch: the last tile may write past a segment's limit.
    """
    n, chunks = tl.program_id(2), tl.cdiv(pitch, CHUNK)
    # [HEADS * BLOCK_S]
    lists = list_tile(
        Limits, Dense, tl.arange(0, HEADS * BLOCK_S),
        first_segment + tl.program_id(0) // chunks * BLOCK_S, first_segment, last_segment,
        num_segments, NUM_HEADS, GROUP, HEADS,
    )  # fmt: skip
    limit = lists.limit
    start = tl.program_id(0) % chunks * CHUNK
    stop = tl.minimum(tl.max(limit), start + CHUNK)
    if start >= stop:
        return
    row = (n * NUM_HEADS + lists.head).to(tl.int64) * num_segments + lists.segment
    # [HEADS * BLOCK_S, BLOCK_D]
    means, variances = load_moments(Means, Variances, row, limit > 0, BLOCK_D)
    K = key_pointer(K, Table, n, tl.max(lists.head), k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = load_sequence(Table, n).kv_len
    # [HEADS * BLOCK_S]
    heavy_from = first_heavy(RankMax, RankSum, lists.place, limit, SAMPLED_KEYS, PARTS, MOST_HEAVY)
    if start == 0:
        too_far = ~(tl.abs(heavy_from) < FARTHEST_STEPS)  # as is a NaN, where ranks overflow
        tl.store(Dense + row, tl.full([HEADS * BLOCK_S], 1, tl.int8), mask=(limit > 0) & too_far)
    # [HEADS * BLOCK_S, 1]
    shift = (heavy_from - HEAVY_BIN - 256)[:, None]
    out = lists.place[:, None] * pitch
    # [BLOCK_N]
    offs = tl.arange(0, BLOCK_N)
    # [1, BLOCK_N]
    bit = (1 << offs % 32)[None, :]
    for j in range(bound(start), bound(stop), BLOCK_N):
        # [BLOCK_N]
        keys = j + offs
        # [BLOCK_N, BLOCK_D]
        k = load_keys(
            K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        # Between 256 and 512 the highest bits of the mantissa count whole steps: conversions would
        # take as long as exponentials.
        # [HEADS * BLOCK_S, BLOCK_N]
        steps = exponents(means, variances, k) * (8 * scale) - shift
        steps = tl.minimum(tl.maximum(steps, 256.0), 511.0)
        rank_bin = (steps.to(tl.int32, bitcast=True) >> 15) & 255
        wanted = (j < limit)[:, None]
        tl.store(Bins + out + keys[None, :], rank_bin.to(tl.uint8), mask=wanted)
        # [HEADS * BLOCK_S, BLOCK_N / 32]
        heavy = tl.where(steps >= 256 + HEAVY_BIN, bit, 0)
        heavy = tl.sum(tl.reshape(heavy, [HEADS * BLOCK_S, BLOCK_N // 32, 32]), 2)
        word = j // 32 + tl.arange(0, BLOCK_N // 32)
        tl.store(Bits + lists.place[:, None] * (pitch // 32) + word[None, :], heavy, mask=wanted)
