"""Stage 1 on the device: mean queries, log-sum-exp of scored rows, probability per key column.

Two passes over the keys. The first holds a tile of rows and streams keys into a running
log-sum-exp. The second holds a tile of keys and streams rows: with the normalisers known, every
score becomes a probability at once, and the rows of a segment are summed per key. No pass writes
anything of size rows x keys.

Kernels are not compiled again for every number of rows or segments: what depends on the length of
a prompt is not specialised.

N sequences, H heads, G segments of R scored rows each (a `RowTable`), G' segments of one launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loads_kernel import (
    key_pointer,
    load_keys,
    load_rows,
    load_sequence,
    page_pointer,
    query_pointer,
)
from ...kernels.loop_kernel import bound
from ...kernels.lse_kernel import FLOOR, add_scores
from .tile_kernel import open_limits

NEVER = tl.constexpr(2**31 - 1)
"""Edge of no row: every key lies left of it."""


@triton.jit(do_not_specialize=["num_pools"])
def mean_query_kernel(
    Q, Low, High, Table, Means, q_strides, num_pools,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Means `[N, H, pools, D]`: of the rows of Q at positions Low to High, int32 `[N, pools]`.

    One program per pool, head and sequence.
    """
    i, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    low = tl.load(Low + n * num_pools + i)
    high = tl.load(High + n * num_pools + i)
    sequence = load_sequence(Table, n)
    offset = sequence.kv_len - sequence.q_len
    q_start = sequence.q_start - offset
    # [BLOCK_D]
    d = tl.arange(0, BLOCK_D)
    base = Q + sequence.batch.to(tl.int64) * q_strides[0] + h.to(tl.int64) * q_strides[1]
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(bound(low), bound(high), BLOCK_M):
        # [BLOCK_M]
        p = first + tl.arange(0, BLOCK_M)
        # [BLOCK_M, BLOCK_D]
        q_ptr = base + (q_start + p).to(tl.int64)[:, None] * q_strides[2] + d[None, :]
        q = tl.load(q_ptr, mask=(p < high)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        total += tl.sum(q.to(tl.float32), 0)
    # [BLOCK_D]
    mean = total / tl.maximum(high - low, 1)
    row = (n * tl.num_programs(1) + h).to(tl.int64) * num_pools + i
    tl.store(Means + row * HEAD_DIM + d, mean.to(Means.dtype.element_ty), mask=d < HEAD_DIM)


@triton.jit(do_not_specialize=["num_segments"])
def finite_kernel(
    X, Table, PageTable, Dense, strides, page_table_stride, num_segments,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, QUERIES: tl.constexpr, TOKENS: tl.constexpr,
    GROUP: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Dense int8 `[N, H, G]`: 1 where a head of X, which GROUP share, holds a NaN or an infinity.

    One program per TOKENS tokens, head of X and sequence. QUERIES: X is q, else k.
    """
    i, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = load_sequence(Table, n)
    if QUERIES:
        start, length = sequence.q_start.to(tl.int64), sequence.q_len
    else:
        start, length = sequence.kv_start.to(tl.int64), sequence.kv_len
    # [TOKENS]
    rows = i * TOKENS + tl.arange(0, TOKENS)
    base = X + sequence.batch.to(tl.int64) * strides[0]
    base += h.to(tl.int64) * strides[1] + start * strides[2]
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    # [TOKENS, BLOCK_D]
    x = load_keys(
        base, rows, rows < length, pages, strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
    )
    wrong = tl.where(tl.abs(x.to(tl.float32)) < float("inf"), 0, 1)
    if tl.max(tl.max(wrong, 1), 0) > 0:
        first = (n * tl.num_programs(1) + h).to(tl.int64) * GROUP * num_segments
        for g in range(0, bound(GROUP * num_segments)):
            tl.store(Dense + first + g, 1)


@triton.jit(do_not_specialize=["num_rows", "tiles"])
def row_lse_kernel(
    Q, K, At, Position, Table, PageTable, Parts, q_strides, k_strides, page_table_stride,
    num_rows, tiles, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
    BY_SEQUENCE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Parts fp32 `[chunks, N, H, rows]`: log2-sum-exp2 of scored rows over each CHUNK of the keys.

    One program per tile of rows (At and Position int32 `[N, rows]`) and chunk, head and sequence.
    """
    n, h = tl.program_id(2), tl.program_id(1)
    tile, chunk = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    # [BLOCK_M]
    flat = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    listed = tl.minimum(flat, num_rows - 1) + n * num_rows
    at = tl.load(At + listed)
    position = tl.load(Position + listed)
    valid = (at >= 0) & (flat < num_rows)
    Q = query_pointer(Q, Table, n, h, q_strides, BY_SEQUENCE)
    # [BLOCK_M, BLOCK_D]
    q = load_rows(Q, tl.where(valid, at, -1), q_strides[2], HEAD_DIM, BLOCK_D)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = load_sequence(Table, n).kv_len

    # [BLOCK_M]
    m = tl.zeros([BLOCK_M], tl.float32) + FLOOR
    total = tl.zeros([BLOCK_M], tl.float32)
    # [BLOCK_N]
    offs = tl.arange(0, BLOCK_N)
    start = chunk * CHUNK
    stop = tl.minimum(tl.max(tl.where(valid, position, -1)) + 1, start + CHUNK)
    open_to = tl.maximum(tl.minimum(tl.min(position) + 1, stop), start)
    open_to = start + (open_to - start) // BLOCK_N * BLOCK_N
    for j in range(bound(start), bound(open_to), BLOCK_N):
        # [BLOCK_N, BLOCK_D]
        k = load_keys(
            K, j + offs, offs >= 0, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, False
        )
        # [BLOCK_M, BLOCK_N]
        s = tl.dot(q, tl.trans(k))
        m, total = add_scores(m, total, s, scale)
    for j in range(bound(open_to), bound(stop), BLOCK_N):
        # [BLOCK_N]
        keys = j + offs
        # [BLOCK_N, BLOCK_D]
        k = load_keys(
            K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        # [BLOCK_M, BLOCK_N]
        s = tl.dot(q, tl.trans(k))
        s = tl.where(keys[None, :] <= position[:, None], s, float("-inf"))
        m, total = add_scores(m, total, s, scale)
    part = (chunk * tl.num_programs(2) + n).to(tl.int64) * NUM_HEADS + h
    tl.store(Parts + part * num_rows + flat, m + tl.log2(total), mask=flat < num_rows)


@triton.jit(do_not_specialize=["num_rows", "chunks"])
def merge_lse_kernel(
    Parts, At, Lse, Dense, num_rows, chunks, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Lse fp32 `[N, H, rows]` from Parts `[chunks, N, H, rows]`: log2-sum-exp2; infinity of no row.

    Where it is not finite the row's segment, of ROWS rows, becomes dense, unless Dense is None.
    One program per BLOCK rows, head and sequence.
    """
    n, h = tl.program_id(2), tl.program_id(1)
    head = (n * tl.num_programs(1) + h).to(tl.int64)
    # [BLOCK]
    flat = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < num_rows
    at = tl.load(At + n * num_rows + flat, mask=inside, other=-1)
    m = tl.zeros([BLOCK], tl.float32) + FLOOR
    total = tl.zeros([BLOCK], tl.float32)
    step = tl.num_programs(2).to(tl.int64) * tl.num_programs(1) * num_rows
    for c in range(0, bound(chunks)):
        # [BLOCK]
        part = tl.load(Parts + c * step + head * num_rows + flat, mask=inside, other=FLOOR)
        m_new = tl.maximum(m, part)
        total = total * tl.exp2(m - m_new) + tl.exp2(part - m_new)
        m = m_new
    lse = m + tl.log2(total)
    if Dense is not None:
        wrong = (at >= 0) & (tl.where(tl.abs(lse) < float("inf"), 0, 1) != 0)
        segment = head * (num_rows // ROWS) + flat // ROWS
        tl.store(Dense + segment, tl.full([BLOCK], 1, tl.int8), mask=wrong)
    tl.store(Lse + head * num_rows + flat, tl.where(at >= 0, lse, float("inf")), mask=inside)


@triton.jit
def store_mass(
    Mass, Bins, offs, mass, write, LOWEST_BITS: tl.constexpr, HIGHEST_BIN: tl.constexpr
):  # fmt: skip
    """Write means, their rank bins (exponent and 3 mantissa bits), or both: None is left out."""
    if Mass is not None:
        tl.store(Mass + offs, mass.to(Mass.dtype.element_ty), mask=write)
    if Bins is not None:
        steps = (mass.to(tl.int32, bitcast=True) >> 20) - LOWEST_BITS
        rank_bin = tl.minimum(tl.maximum(steps, 0), HIGHEST_BIN)
        tl.store(Bins + offs, rank_bin.to(tl.uint8), mask=write)


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def segment_mass_kernel(
    Q, K, At, Edge, Lse, Limits, Share, Dense, Table, PageTable, Mass, Bins, q_strides, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, pitch, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    LOWEST_BITS: tl.constexpr, HIGHEST_BIN: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr, BY_SEQUENCE: tl.constexpr,
):  # fmt: skip
    """Mass and Bins `[N, H, G', pitch]`: mean probability of keys under the rows of each segment.

    One program per CHUNK keys of the segments that share a tile of rows, head and sequence. Row c
    of the tile belongs to segment `c % SEGMENTS`, so that a thread holds whole sums. Written is up
    to the largest limit of the segments that are not dense already.
    """
    SEGMENTS: tl.constexpr = BLOCK_M // ROWS
    n, h = tl.program_id(2), tl.program_id(1)
    chunks = tl.cdiv(pitch, CHUNK)
    tile = first_segment // SEGMENTS + tl.program_id(0) // chunks
    head = (n * NUM_HEADS + h).to(tl.int64)
    # [SEGMENTS]
    segment = tile * SEGMENTS + tl.arange(0, SEGMENTS)
    inside = (segment >= first_segment) & (segment < last_segment)
    limit = open_limits(Limits, Dense, n, head, segment, inside, num_segments)
    start = tl.program_id(0) % chunks * CHUNK
    stop = tl.minimum(tl.max(limit), start + CHUNK)
    if start >= stop:
        return
    # [BLOCK_M]
    c = tl.arange(0, BLOCK_M)
    g = tile * SEGMENTS + c % SEGMENTS
    valid = g < last_segment
    row = g * ROWS + c // SEGMENTS
    at = tl.load(At + n * num_segments * ROWS + row, mask=valid, other=-1)
    edge = tl.load(Edge + n * num_segments * ROWS + row, mask=valid, other=NEVER)
    lse = tl.load(Lse + head * num_segments * ROWS + row, mask=valid, other=float("inf"))
    # [SEGMENTS]
    share = tl.load(Share + n * num_segments + segment, mask=inside, other=0.0)
    Q = query_pointer(Q, Table, n, h, q_strides, BY_SEQUENCE)
    # [BLOCK_M, BLOCK_D]
    q = load_rows(Q, at, q_strides[2], HEAD_DIM, BLOCK_D)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = load_sequence(Table, n).kv_len
    # [1, SEGMENTS]
    out = head * (last_segment - first_segment) * pitch
    out += (segment - first_segment).to(tl.int64)[None, :] * pitch
    # [BLOCK_N]
    offs = tl.arange(0, BLOCK_N)
    # keys left of every row's edge need no mask
    open_to = start + tl.maximum(tl.minimum(tl.min(edge), stop) - start, 0) // BLOCK_N * BLOCK_N
    for j in range(bound(start), bound(open_to), BLOCK_N):
        # [BLOCK_N, BLOCK_D]
        k = load_keys(
            K, j + offs, offs >= 0, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, False
        )
        # [BLOCK_N, BLOCK_M]
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])
        # [BLOCK_N, SEGMENTS]
        mass = tl.sum(tl.reshape(p, [BLOCK_N, ROWS, SEGMENTS]), 1) * share[None, :]
        write = inside[None, :] & (offs >= 0)[:, None]
        store_mass(Mass, Bins, out + (j + offs)[:, None], mass, write, LOWEST_BITS, HIGHEST_BIN)
    for j in range(bound(open_to), bound(stop), BLOCK_N):
        # [BLOCK_N]
        keys = j + offs
        # [BLOCK_N, BLOCK_D]
        k = load_keys(
            K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        # [BLOCK_N, BLOCK_M]
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])
        p = tl.where(keys[:, None] < edge[None, :], p, 0.0)
        # [BLOCK_N, SEGMENTS]
        mass = tl.sum(tl.reshape(p, [BLOCK_N, ROWS, SEGMENTS]), 1) * share[None, :]
        write = inside[None, :] & (keys < pitch)[:, None]
        store_mass(Mass, Bins, out + keys[:, None], mass, write, LOWEST_BITS, HIGHEST_BIN)


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments", "tiles"])
def column_mass_kernel(
    Q, K, At, Edge, Lse, Share, Table, PageTable, Mass, Bins, q_strides, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, pitch, scale, tiles,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TILES: tl.constexpr,
    LOWEST_BITS: tl.constexpr, HIGHEST_BIN: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr, BY_SEQUENCE: tl.constexpr,
):  # fmt: skip
    """`segment_mass_kernel` for segments of several tiles of rows: keys stay and rows stream by.

    One program per BLOCK_N keys, head and segment, and sequence. Everything up to the pitch is
    written. BLOCK_TILES: a power of two, at least `tiles`, which grows with the call and compiles
    nothing.
    """
    n, h = tl.program_id(2), tl.program_id(1) % NUM_HEADS
    segment = first_segment + tl.program_id(1) // NUM_HEADS
    head = (n * NUM_HEADS + h).to(tl.int64)
    first_row = segment * tiles * BLOCK_M
    At += n * num_segments * tiles * BLOCK_M + first_row
    Edge += n * num_segments * tiles * BLOCK_M + first_row
    Lse += head * num_segments * tiles * BLOCK_M + first_row
    start = tl.program_id(0) * BLOCK_N
    # [BLOCK_N]
    keys = start + tl.arange(0, BLOCK_N)
    # edges rise with the rows: from which tile on are some of these keys counted, and all of them
    # [BLOCK_TILES]
    t = tl.arange(0, BLOCK_TILES)
    low = tl.load(Edge + t * BLOCK_M, mask=t < tiles, other=NEVER)
    high = tl.load(Edge + t * BLOCK_M + BLOCK_M - 1, mask=t < tiles, other=NEVER)
    some_from = tl.sum((high <= start).to(tl.int32))
    all_from = tl.maximum(tl.sum((low < start + BLOCK_N).to(tl.int32)), some_from)

    Q = query_pointer(Q, Table, n, h, q_strides, BY_SEQUENCE)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = load_sequence(Table, n).kv_len
    # [BLOCK_N, BLOCK_D]
    k = load_keys(
        K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
    )
    # [BLOCK_M]
    c = tl.arange(0, BLOCK_M)
    # [BLOCK_N]
    mass = tl.zeros([BLOCK_N], tl.float32)
    for i in range(bound(some_from), bound(all_from)):
        # [BLOCK_M]
        row = i * BLOCK_M + c
        # [BLOCK_M, BLOCK_D]
        q = load_rows(Q, tl.load(At + row), q_strides[2], HEAD_DIM, BLOCK_D)
        # [BLOCK_N, BLOCK_M]
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - tl.load(Lse + row)[None, :])
        mass += tl.sum(tl.where(keys[:, None] < tl.load(Edge + row)[None, :], p, 0.0), 1)
    for i in range(bound(all_from), bound(tiles)):
        # [BLOCK_M]
        row = i * BLOCK_M + c
        # [BLOCK_M, BLOCK_D]
        q = load_rows(Q, tl.load(At + row), q_strides[2], HEAD_DIM, BLOCK_D)
        # [BLOCK_N, BLOCK_M]
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - tl.load(Lse + row)[None, :])
        mass += tl.sum(p, 1)
    mass *= tl.load(Share + n * num_segments + segment)
    out = (head * (last_segment - first_segment) + segment - first_segment) * pitch
    store_mass(Mass, Bins, out + keys, mass, keys < pitch, LOWEST_BITS, HIGHEST_BIN)
