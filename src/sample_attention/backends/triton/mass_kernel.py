"""Stage 1 on the device: mean queries, log-sum-exp of scored rows, probability per key column.

Two passes over the keys. The first holds a tile of rows and streams keys into a running
log-sum-exp. The second holds a tile of keys and streams rows: with the normalisers known, every
score becomes a probability at once, and the rows of a segment are summed per key. No pass writes
anything of size rows x keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1.0e30)
"""Running maximum before the first key: finite, so that empty rows never meet inf - inf."""


@triton.jit
def mean_query_kernel(
    Q, Low, High, Table, Means, q_strides, num_pools,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Mean of the rows at positions [low, high): one program per pool, head and sequence."""
    i, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    low = tl.load(Low + n * num_pools + i)
    high = tl.load(High + n * num_pools + i)
    b = tl.load(Table + n * 5).to(tl.int64)
    offset = tl.load(Table + n * 5 + 4) - tl.load(Table + n * 5 + 2)
    q_start = tl.load(Table + n * 5 + 1) - offset
    d = tl.arange(0, BLOCK_D)
    base = Q + b * q_strides[0] + h * q_strides[1]
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(low, high, BLOCK_M):
        p = first + tl.arange(0, BLOCK_M)
        at = base + (q_start + p).to(tl.int64)[:, None] * q_strides[2] + d[None, :]
        q = tl.load(at, mask=(p < high)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        total += tl.sum(q.to(tl.float32), 0)
    mean = total / tl.maximum(high - low, 1)
    row = (n * tl.num_programs(1) + h).to(tl.int64) * num_pools + i
    tl.store(Means + row * HEAD_DIM + d, mean.to(Means.dtype.element_ty), mask=d < HEAD_DIM)


@triton.jit
def finite_kernel(
    X, Table, Flags, strides, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, FIRST: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    """Whether a run of TOKENS rows of one head and sequence holds finite numbers only.

    FIRST: the column of the table that says where the sequence's rows start; the next has how many.
    """
    i, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b = tl.load(Table + n * 5).to(tl.int64)
    start, length = tl.load(Table + n * 5 + FIRST), tl.load(Table + n * 5 + FIRST + 1)
    rows = i * TOKENS + tl.arange(0, TOKENS)
    d = tl.arange(0, BLOCK_D)
    at = X + b * strides[0] + h * strides[1] + (start + rows).to(tl.int64)[:, None] * strides[2]
    x = tl.load(at + d[None, :], mask=(rows < length)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    wrong = tl.where(tl.abs(x.to(tl.float32)) < float("inf"), 0, 1)
    flag = tl.where(tl.max(tl.max(wrong, 1), 0) > 0, 0, 1)
    at = (n * tl.num_programs(1) + h).to(tl.int64) * tl.num_programs(0) + i
    tl.store(Flags + at, flag.to(tl.int8))


@triton.jit
def load_keys(base, keys, mask, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Rows of K `[keys, BLOCK_D]`; past the head dim and outside the mask they are zero."""
    d = tl.arange(0, BLOCK_D)
    at = base + keys.to(tl.int64)[:, None] * stride + d[None, :]
    if MASKED or HEAD_DIM != BLOCK_D:
        return tl.load(at, mask=mask[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def row_lse_kernel(
    Q, K, At, Position, Table, Lse, q_strides, k_strides, num_rows, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BY_SEQUENCE: tl.constexpr,
):  # fmt: skip
    """Log2-sum-exp2 of a tile of scored rows: NaN if it is not finite, infinity for no row."""
    n, h = tl.program_id(2), tl.program_id(1)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # late rows see more keys: they go first
    flat = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    listed = tl.minimum(flat, num_rows - 1) + n * num_rows
    at = tl.load(At + listed)
    position = tl.load(Position + listed)
    there = (at >= 0) & (flat < num_rows)
    b = tl.load(Table + n * 5).to(tl.int64)
    q_batch = b
    if BY_SEQUENCE:
        q_batch = n.to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    q_ptr = Q + q_batch * q_strides[0] + h * q_strides[1]
    q_ptr += at.to(tl.int64)[:, None] * q_strides[2] + d[None, :]
    q = tl.load(q_ptr, mask=there[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    kv_start, kv_len = tl.load(Table + n * 5 + 3), tl.load(Table + n * 5 + 4)
    k_stride = k_strides[2]
    k_base = K + b * k_strides[0] + h // GROUP * k_strides[1] + kv_start.to(tl.int64) * k_stride

    m = tl.zeros([BLOCK_M], tl.float32) + FLOOR
    total = tl.zeros([BLOCK_M], tl.float32)
    step = tl.arange(0, BLOCK_N)
    last = tl.max(tl.where(there, position, -1))
    open_to = tl.minimum(tl.min(position), last) + 1
    open_to = tl.maximum(open_to, 0) // BLOCK_N * BLOCK_N
    for j in range(0, open_to, BLOCK_N):
        k = load_keys(k_base, j + step, step >= 0, k_stride, HEAD_DIM, BLOCK_D, False)
        s = tl.dot(q, tl.trans(k))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s * scale - m_new[:, None]), 1)
        m = m_new
    for j in range(open_to, last + 1, BLOCK_N):
        keys = j + step
        k = load_keys(k_base, keys, keys < kv_len, k_stride, HEAD_DIM, BLOCK_D, True)
        s = tl.dot(q, tl.trans(k))
        s = tl.where(keys[None, :] <= position[:, None], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s * scale - m_new[:, None]), 1)
        m = m_new
    lse = m + tl.log2(total)
    lse = tl.where(tl.abs(lse) < float("inf"), lse, float("nan"))
    lse = tl.where(there, lse, float("inf"))
    tl.store(Lse + (n * NUM_HEADS + h) * num_rows + flat, lse, mask=flat < num_rows)


@triton.jit
def tile_mass(
    k, keys, i, last_segment, Q, At, Edge, Lse, q_stride, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Probability per key `[BLOCK_N, SEGMENTS]`, summed over the rows of each segment of tile i.

    Row c of a tile belongs to its segment `c % SEGMENTS`, so that a thread holds whole sums.
    MASKED: keys from a row's edge on are not counted.
    """
    c = tl.arange(0, BLOCK_M)
    if SEGMENTS > 1:
        segment = i * SEGMENTS + c % SEGMENTS
        row, there = segment * ROWS + c // SEGMENTS, segment < last_segment
    else:
        row, there = i * BLOCK_M + c, c < ROWS
    at = tl.load(At + row, mask=there, other=-1)
    lse = tl.load(Lse + row, mask=there, other=float("inf"))
    d = tl.arange(0, BLOCK_D)
    q_ptr = Q + at.to(tl.int64)[:, None] * q_stride + d[None, :]
    q = tl.load(q_ptr, mask=(at >= 0)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])
    if MASKED:
        edge = tl.load(Edge + row, mask=there, other=0)
        p = tl.where(keys[:, None] < edge[None, :], p, 0.0)
    return tl.sum(tl.reshape(p, [k.shape[0], BLOCK_M // SEGMENTS, SEGMENTS]), 1)


@triton.jit
def store_mass(
    mass, keys, segment, first_segment, last_segment, Share, Mass, Class, pitch,
    LOWEST_BITS: tl.constexpr, HIGHEST_CLASS: tl.constexpr, WITH_CLASS: tl.constexpr,
):  # fmt: skip
    """Write the means of sums `[BLOCK_N, SEGMENTS]`, and their classes: exponent, 3 mantissa bits."""
    inside = (segment >= first_segment) & (segment < last_segment)
    mean = mass * tl.load(Share + segment, mask=inside, other=0.0)[None, :]
    at = (segment - first_segment).to(tl.int64)[None, :] * pitch + keys[:, None]
    write = inside[None, :] & (keys < pitch)[:, None]
    tl.store(Mass + at, mean.to(Mass.dtype.element_ty), mask=write)
    if WITH_CLASS:
        steps = (mean.to(tl.int32, bitcast=True) >> 20) - LOWEST_BITS
        tl.store(Class + at, tl.minimum(tl.maximum(steps, 0), HIGHEST_CLASS).to(tl.uint8), mask=write)


@triton.jit
def column_mass_kernel(
    Q, K, At, Edge, Lse, Limits, Share, Dense, Table, Mass, Class, q_strides, k_strides,
    first_segment, last_segment, num_segments, pitch, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
    LOWEST_BITS: tl.constexpr, HIGHEST_CLASS: tl.constexpr, WITH_CLASS: tl.constexpr,
    BY_SEQUENCE: tl.constexpr,
):  # fmt: skip
    """Mean probability of a tile of keys under the rows of each segment, windows not counted.

    Written up to each segment's limit. Segments that are dense already need no mass: a program
    that has only such stops.

    ROWS: rows of a segment. Small segments share a tile of rows. A large one takes several tiles,
    and the second axis of the grid then counts heads and segments.
    TILES: a power of two, no less than the tiles that a program goes through.
    """
    SEGMENTS: tl.constexpr = 1 if ROWS >= BLOCK_M else BLOCK_M // ROWS
    PER_SEGMENT: tl.constexpr = 1 if ROWS <= BLOCK_M else ROWS // BLOCK_M
    n, h = tl.program_id(2), tl.program_id(1) % NUM_HEADS
    row_head = (n * NUM_HEADS + h).to(tl.int64)
    first, last = first_segment, last_segment
    if PER_SEGMENT > 1:
        first = first_segment + tl.program_id(1) // NUM_HEADS
        last = first + 1
    some = first + tl.arange(0, TILES * SEGMENTS)
    flags = tl.load(Dense + row_head * num_segments + some, mask=some < last, other=1)
    if tl.min(flags.to(tl.int32)) != 0:
        return
    start = tl.program_id(0) * BLOCK_N
    keys = start + tl.arange(0, BLOCK_N)

    # edges rise with the rows: from which tile on are some of these keys counted, and all of them
    num_rows = num_segments * ROWS
    begin = first // SEGMENTS * PER_SEGMENT
    end = tl.cdiv(last, SEGMENTS) * PER_SEGMENT
    At += n * num_rows
    Edge += n * num_rows
    Share += n * num_segments
    Lse += row_head * num_rows
    t = begin + tl.arange(0, TILES)
    low = tl.load(Edge + t * BLOCK_M, mask=t < end, other=2147483647)
    if PER_SEGMENT == 1:
        at = Limits + n * num_segments + tl.minimum((t + 1) * SEGMENTS, num_segments) - 1
    else:
        at = Edge + (t + 1) * BLOCK_M - 1
    high = tl.load(at, mask=t < end, other=2147483647)
    some_from = begin + tl.sum((high <= start).to(tl.int32))
    all_from = tl.maximum(begin + tl.sum((low < start + BLOCK_N).to(tl.int32)), some_from)

    b = tl.load(Table + n * 5).to(tl.int64)
    kv_start, kv_len = tl.load(Table + n * 5 + 3), tl.load(Table + n * 5 + 4)
    k_stride = k_strides[2]
    k_base = K + b * k_strides[0] + h // GROUP * k_strides[1] + kv_start.to(tl.int64) * k_stride
    q_batch = b
    if BY_SEQUENCE:
        q_batch = n.to(tl.int64)
    Q += q_batch * q_strides[0] + h * q_strides[1]
    Mass += row_head * (last_segment - first_segment) * pitch
    Class += row_head * (last_segment - first_segment) * pitch
    s = tl.arange(0, SEGMENTS)
    mass = tl.zeros([BLOCK_N, SEGMENTS], tl.float32)
    if PER_SEGMENT == 1:
        if some_from == end:
            return
    k = load_keys(k_base, keys, keys < kv_len, k_stride, HEAD_DIM, BLOCK_D, True)
    for i in range(some_from, all_from):
        mass += tile_mass(
            k, keys, i, last, Q, At, Edge, Lse, q_strides[2], scale,
            HEAD_DIM, BLOCK_D, BLOCK_M, ROWS, SEGMENTS, True,
        )  # fmt: skip
        if PER_SEGMENT == 1:
            store_mass(
                mass, keys, i * SEGMENTS + s, first_segment, last_segment, Share, Mass, Class,
                pitch, LOWEST_BITS, HIGHEST_CLASS, WITH_CLASS,
            )  # fmt: skip
            mass = tl.zeros([BLOCK_N, SEGMENTS], tl.float32)
    for i in range(all_from, end):
        mass += tile_mass(
            k, keys, i, last, Q, At, Edge, Lse, q_strides[2], scale,
            HEAD_DIM, BLOCK_D, BLOCK_M, ROWS, SEGMENTS, False,
        )  # fmt: skip
        if PER_SEGMENT == 1:
            store_mass(
                mass, keys, i * SEGMENTS + s, first_segment, last_segment, Share, Mass, Class,
                pitch, LOWEST_BITS, HIGHEST_CLASS, WITH_CLASS,
            )  # fmt: skip
            mass = tl.zeros([BLOCK_N, SEGMENTS], tl.float32)
    if PER_SEGMENT > 1:
        store_mass(
            mass, keys, first + s, first_segment, last_segment, Share, Mass, Class,
            pitch, LOWEST_BITS, HIGHEST_CLASS, WITH_CLASS,
        )  # fmt: skip
