"""Selection by mean and spread of the queries: ranks of all columns, masses of the probed ones.

    q ─► moments ─► rank: classes [segments, columns] ─► probe: heavy columns, histogram
    q, k ─────────────────────────────────────────────► count: class from which columns are kept

The class of a column is floor(8 log2 rank) as int16, with no common reference. What a segment's
ranks sum to is estimated from its regular probes, and classes are told apart within 16 octaves of
the first heavy one, which makes 256 bins.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .filter_kernel import load_block
from .mass_kernel import FLOOR, key_pointer, load_keys, open_limits, page_pointer

BINS = tl.constexpr(256)
HEAVY_BIN = tl.constexpr(128)
"""Bin of the first heavy class."""

KEY_SHRINK = tl.constexpr(1 / 16)
"""Keys are multiplied by this before they are squared: squares of fp16 overflow from 256 on."""

EVERY_CLASS = tl.constexpr(-32768)
"""Threshold below every class."""


@triton.jit
def segment_rows(Table, n, g, size):
    """First row of segment g of sequence n, and past the last: positions, and where q has them."""
    kv_len = tl.load(Table + n * 5 + 4)
    offset = kv_len - tl.load(Table + n * 5 + 2)
    start = (offset // size + g) * size
    return tl.maximum(start, offset), tl.minimum(start + size, kv_len), offset


@triton.jit(do_not_specialize=["num_segments", "dense_prefix"])
def moments_kernel(
    Q, Table, Ends, Dense, Means, Spreads, q_strides, num_segments, dense_prefix, half,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr, BLOCK_M: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
):  # fmt: skip
    """Mean, and `half` times the variance, of a segment's queries: `[N, H, G, BLOCK_D]`.

    A segment is dense that ends within the prefix, has no sampled row or no finite moments.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    entry = (n * tl.num_programs(1) + h).to(tl.int64) * num_segments + g
    first, stop, offset = segment_rows(Table, n, g, SEGMENT)
    sampled = (stop - 1 - ROW_STRIDE // 2) // ROW_STRIDE * ROW_STRIDE + ROW_STRIDE // 2
    if (sampled < first) | (tl.load(Ends + n * num_segments + g) <= dense_prefix):
        tl.store(Dense + entry, 1)
        return
    b = tl.load(Table + n * 5).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    p = first + tl.arange(0, BLOCK_M)
    there = (p < stop)[:, None] & (d < HEAD_DIM)[None, :]
    base = Q + b * q_strides[0] + h.to(tl.int64) * q_strides[1]
    at = (tl.load(Table + n * 5 + 1) - offset + p).to(tl.int64)[:, None] * q_strides[2]
    q = tl.load(base + at + d[None, :], mask=there, other=0.0).to(tl.float32)
    mean = tl.sum(q, 0) / (stop - first)
    away = tl.where(there, q - mean[None, :], 0.0)
    spread = tl.sum(away * away, 0) / (stop - first) * (half / (KEY_SHRINK * KEY_SHRINK))
    mean, spread = mean.to(Means.dtype.element_ty), spread.to(Spreads.dtype.element_ty)
    tl.store(Means + entry * BLOCK_D + d, mean)
    tl.store(Spreads + entry * BLOCK_D + d, spread)
    sizes = tl.abs(mean.to(tl.float32)) + tl.abs(spread.to(tl.float32))
    if tl.max(tl.where(sizes < float("inf"), 0, 1)) > 0:
        tl.store(Dense + entry, 1)


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def rank_kernel(
    Means, Spreads, K, Limits, Dense, Table, PageTable, Class, k_strides, page_table_stride,
    first_segment, last_segment, num_segments, pitch, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Classes of CHUNK columns for a tile of segments: floor(8 log2 of their rank).

    BLOCK_N divides the pitch: the last tile may write past a segment's limit.
    """
    n, h = tl.program_id(2), tl.program_id(1)
    chunks = tl.cdiv(pitch, CHUNK)
    head = (n * NUM_HEADS + h).to(tl.int64)
    segment = first_segment + tl.program_id(0) // chunks * BLOCK_S + tl.arange(0, BLOCK_S)
    inside = segment < last_segment
    limit = open_limits(Limits, Dense, n, head, segment, inside, num_segments)
    start = tl.program_id(0) % chunks * CHUNK
    stop = tl.minimum(tl.max(limit), start + CHUNK)
    if start >= stop:
        return
    d = tl.arange(0, BLOCK_D)
    at = (head * num_segments + segment)[:, None] * BLOCK_D + d[None, :]
    means = tl.load(Means + at, mask=(limit > 0)[:, None], other=0.0)
    spreads = tl.load(Spreads + at, mask=(limit > 0)[:, None], other=0.0)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = tl.load(Table + n * 5 + 4)
    out = (head * (last_segment - first_segment) + segment - first_segment)[None, :] * pitch
    step = tl.arange(0, BLOCK_N)
    for j in range(start, stop, BLOCK_N):
        keys = j + step
        k = load_keys(
            K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        small = (k * KEY_SHRINK).to(k.dtype)
        s = tl.dot(k, tl.trans(means))
        s = tl.dot(small * small, tl.trans(spreads), s)
        steps = tl.floor(s * (8 * scale))
        rank_class = tl.minimum(tl.maximum(steps, -32767.0), 32767.0).to(tl.int16)
        tl.store(Class + out + keys[:, None], rank_class, mask=inside[None, :])


@triton.jit
def distance_of_probes(limit, probes):
    """Distance of the regular probes: the smallest power of two at which they are not too many."""
    step = 1
    while step * probes < limit:
        step *= 2
    return step


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def probe_kernel(
    Class, Limits, Dense, HeavyFrom, HeavyCounts, Heavy, Histogram, pitch, num_segments,
    first_segment,
    PROBES: tl.constexpr, BLOCK_P: tl.constexpr, MOST_HEAVY: tl.constexpr, ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The first heavy class, the heavy columns and how many columns each bin of classes has.

    One program per segment, head and sequence. A segment with more than ROOM heavy columns is
    dense.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = n * tl.num_programs(1) + h
    entry = head * num_segments + first_segment + g
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    if (tl.load(Dense + entry) != 0) | (limit == 0):
        return
    scratch = head * tl.num_programs(0) + g
    Class += scratch.to(tl.int64) * pitch
    step = distance_of_probes(limit, PROBES)
    t = tl.arange(0, BLOCK_P)
    j = t * step + step - 1
    there = (t < PROBES) & (j < limit)
    regular = tl.load(Class + j, mask=there, other=EVERY_CLASS).to(tl.int32)
    top = tl.max(regular)
    sizes = tl.exp2((regular - top).to(tl.float32) / 8)
    total = tl.sum(tl.where(there, sizes, 0.0)) * step
    heavy_from = top + tl.ceil(8 * tl.log2(total / MOST_HEAVY)).to(tl.int32)
    Heavy += scratch.to(tl.int64) * ROOM
    used = 0
    bins = tl.zeros([BINS], tl.int32)
    for start in range(0, limit, BLOCK):
        above, inside, keys = load_block(Class, start, limit, pitch, BLOCK)
        above = above.to(tl.int32) - heavy_from
        above = tl.minimum(tl.maximum(above, -HEAVY_BIN), BINS - 1 - HEAVY_BIN)
        heavy = (above >= 0) & inside
        place = used + tl.cumsum(heavy.to(tl.int32), 0) - 1
        tl.store(Heavy + place, keys, mask=heavy & (place < ROOM))
        used += tl.sum(heavy.to(tl.int32))
        bins += tl.histogram(above + HEAVY_BIN, BINS, mask=inside)
    tl.store(Histogram + scratch.to(tl.int64) * BINS + tl.arange(0, BINS), bins)
    tl.store(HeavyFrom + scratch, heavy_from)
    tl.store(HeavyCounts + scratch, used)
    if used > ROOM:
        tl.store(Dense + entry, 1)


@triton.jit
def probe_keys(
    i, Class, Heavy, heavy_from, heavy_count, limit, step, log_step, tiles,
    PROBES: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Tile i of the probed columns: keys, log2 of what each stands for (-inf: none), and bins.

    The first `tiles` tiles are the regular probes, of which heavy ones do not count, the others
    the heavy columns.
    """
    lane = tl.arange(0, BLOCK_N)
    t = i * BLOCK_N + lane
    j = t * step + step - 1
    regular = (i < tiles) & (t < PROBES) & (j < limit)
    slot = (i - tiles) * BLOCK_N + lane
    heavy = (i >= tiles) & (slot < heavy_count)
    listed = tl.load(Heavy + slot, mask=heavy, other=0)
    keys = tl.where(heavy, listed, tl.where(regular, j, 0))
    above = tl.load(Class + keys).to(tl.int32) - heavy_from
    above = tl.minimum(tl.maximum(above, -HEAVY_BIN), BINS - 1 - HEAVY_BIN)
    weight = tl.where(heavy, 0.0, tl.where(regular & (above < 0), log_step, float("-inf")))
    return keys, weight, above + HEAVY_BIN


@triton.jit
def mass_from(mass, bins, low, step):
    """Mass of the bins >= low + step, low + 2 step, low + 3 step."""
    one = tl.sum(tl.where(bins >= low + step, mass, 0.0))
    two = tl.sum(tl.where(bins >= low + 2 * step, mass, 0.0))
    three = tl.sum(tl.where(bins >= low + 3 * step, mass, 0.0))
    return one, two, three


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def count_kernel(
    Q, K, Table, PageTable, Class, Limits, HeavyFrom, HeavyCounts, Heavy, Histogram, Mass, Bins,
    Threshold, Counts, Dense, q_strides, k_strides, page_table_stride, pitch, num_segments,
    first_segment, coverage, dense_above, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, ROW_STRIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PROBES: tl.constexpr, ROOM: tl.constexpr, SLOTS: tl.constexpr, RESIDUAL: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """How many columns of a segment are kept, and from which class: dense if too many.

    Exact rows are scored on the keys of their window and on the probed columns, twice: for their
    normalisers, and for the mass of each probe. One program per segment, head and sequence.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = n * NUM_HEADS + h
    entry = head * num_segments + first_segment + g
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    if (tl.load(Dense + entry) != 0) | (limit == 0):
        return
    scratch = (head * tl.num_programs(0) + g).to(tl.int64)
    Class += scratch * pitch
    Heavy += scratch * ROOM
    Mass += scratch * SLOTS
    Bins += scratch * SLOTS
    heavy_from, heavy_count = tl.load(HeavyFrom + scratch), tl.load(HeavyCounts + scratch)
    step = distance_of_probes(limit, PROBES)
    log_step = tl.log2(step.to(tl.float32))
    tiles = tl.cdiv(tl.minimum(limit // step, PROBES), BLOCK_N)
    every = tiles + tl.cdiv(heavy_count, BLOCK_N)

    first, stop, offset = segment_rows(Table, n, first_segment + g, SEGMENT)
    start = first // SEGMENT * SEGMENT
    p = start + tl.arange(0, BLOCK_M) * ROW_STRIDE + ROW_STRIDE // 2
    there = (p >= first) & (p < stop)
    d = tl.arange(0, BLOCK_D)
    b = tl.load(Table + n * 5).to(tl.int64)
    at = (tl.load(Table + n * 5 + 1) - offset + p).to(tl.int64)[:, None] * q_strides[2]
    base = Q + b * q_strides[0] + h.to(tl.int64) * q_strides[1]
    q_mask = there[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(base + at + d[None, :], mask=q_mask, other=0.0)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    lane = tl.arange(0, BLOCK_N)

    # Keys x rows, and a running softmax of every entry of the tile: nothing is reduced before the
    # last tile.
    m = tl.zeros([BLOCK_N, BLOCK_M], tl.float32) + FLOOR
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    band = tl.cdiv(stop - limit, BLOCK_N)
    for i in range(0, band + every):
        in_band = i < band
        keys, weight, _ = probe_keys(
            tl.maximum(i - band, 0), Class, Heavy, heavy_from, heavy_count, limit, step, log_step,
            tiles, PROBES, BLOCK_N,
        )  # fmt: skip
        keys = tl.where(in_band, limit + i * BLOCK_N + lane, keys)
        k = load_keys(
            K, keys, keys < stop, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        s = tl.dot(k, tl.trans(q)) * scale + tl.where(in_band, 0.0, weight)[:, None]
        s = tl.where(keys[:, None] <= p[None, :], s, float("-inf"))
        m_new = tl.maximum(m, s)
        total = total * tl.exp2(m - m_new) + tl.exp2(s - m_new)
        m = m_new
    largest = tl.max(m, 0)
    lse = largest + tl.log2(tl.sum(total * tl.exp2(m - largest[None, :]), 0))
    lse = tl.where(there, lse, float("inf"))
    share = 1.0 / tl.sum(there.to(tl.float32))
    for i in range(0, every):
        keys, weight, bins = probe_keys(
            i, Class, Heavy, heavy_from, heavy_count, limit, step, log_step, tiles, PROBES, BLOCK_N
        )
        k = load_keys(
            K, keys, keys < stop, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        s = tl.dot(k, tl.trans(q)) * scale + weight[:, None]
        mass = tl.sum(tl.exp2(s - lse[None, :]), 1) * share
        tl.store(Mass + i * BLOCK_N + lane, mass)
        tl.store(Bins + i * BLOCK_N + lane, bins.to(tl.uint8))

    tl.debug_barrier()  # what other threads of the program have written is read next
    slot = tl.arange(0, SLOTS)
    mass = tl.load(Mass + slot, mask=slot < every * BLOCK_N, other=0.0)
    bins = tl.load(Bins + slot, mask=slot < every * BLOCK_N, other=0).to(tl.int32)
    outside = tl.sum(mass)
    need = coverage - (1.0 - outside) if RESIDUAL else coverage * outside
    low = 0
    size = 64
    while size > 0:
        one, two, three = mass_from(mass, bins, low, size)
        low += size * ((one >= need).to(tl.int32) + (two >= need) + (three >= need))
        size = size // 4
    columns = tl.load(Histogram + scratch * BINS + tl.arange(0, BINS))
    kept = tl.sum(tl.where(tl.arange(0, BINS) >= low, columns, 0))
    kept = tl.where(need > 0, kept, 0)
    threshold = tl.where(low == 0, EVERY_CLASS, heavy_from + low - HEAVY_BIN)
    sparse = (kept <= dense_above * limit) & (tl.abs(outside) < float("inf"))
    tl.store(Threshold + entry, threshold)
    tl.store(Counts + entry, tl.where(sparse, kept, 0))
    tl.store(Dense + entry, tl.where(sparse, 0, 1).to(tl.int8))
