"""Stage 1 on the device: mean queries, log-sum-exp of scored rows, probability per key column.

Two passes over the keys. The first holds a tile of rows and streams keys into a running
log-sum-exp. The second holds a tile of keys and streams rows: with the normalisers known, every
score becomes a probability at once, and the rows of a segment are summed per key. No pass writes
anything of size rows x keys.

Kernels are not compiled again for every number of rows or segments: what depends on the length of
a prompt is not specialised.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loop_kernel import bound
from ...kernels.paging_kernel import key_offsets

FLOOR = tl.constexpr(-1.0e30)
"""Running maximum before the first key: finite, so that empty rows never meet inf - inf."""


@triton.jit(do_not_specialize=["num_pools"])
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
    base = Q + b * q_strides[0] + h.to(tl.int64) * q_strides[1]
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(bound(low), bound(high), BLOCK_M):
        p = first + tl.arange(0, BLOCK_M)
        at = base + (q_start + p).to(tl.int64)[:, None] * q_strides[2] + d[None, :]
        q = tl.load(at, mask=(p < high)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        total += tl.sum(q.to(tl.float32), 0)
    mean = total / tl.maximum(high - low, 1)
    row = (n * tl.num_programs(1) + h).to(tl.int64) * num_pools + i
    tl.store(Means + row * HEAD_DIM + d, mean.to(Means.dtype.element_ty), mask=d < HEAD_DIM)


@triton.jit(do_not_specialize=["num_segments"])
def finite_kernel(
    X, Table, PageTable, Dense, strides, page_table_stride, num_segments,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, FIRST: tl.constexpr, TOKENS: tl.constexpr,
    GROUP: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Make a head dense, or all GROUP that share it, if a token holds a NaN or an infinity.

    FIRST: the column of the table that says where the sequence's rows start; the next has how many.
    """
    i, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b = tl.load(Table + n * 5).to(tl.int64)
    start, length = tl.load(Table + n * 5 + FIRST).to(tl.int64), tl.load(Table + n * 5 + FIRST + 1)
    rows = i * TOKENS + tl.arange(0, TOKENS)
    base = X + b * strides[0] + h.to(tl.int64) * strides[1] + start * strides[2]
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    x = load_keys(
        base, rows, rows < length, pages, strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
    )
    wrong = tl.where(tl.abs(x.to(tl.float32)) < float("inf"), 0, 1)
    if tl.max(tl.max(wrong, 1), 0) > 0:
        first = (n * tl.num_programs(1) + h).to(tl.int64) * GROUP * num_segments
        for g in range(0, bound(GROUP * num_segments)):
            tl.store(Dense + first + g, 1)


@triton.jit
def load_keys(
    K, keys, mask, pages, k_strides, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Rows of K `[keys, BLOCK_D]`; zero past the head dim and, where MASKED, outside the mask."""
    d = tl.arange(0, BLOCK_D)
    there = mask if MASKED else None
    at = key_offsets(keys, there, pages, k_strides[0], k_strides[2], PAGE_SIZE, WIDE)
    at = K + at[:, None] + d[None, :]
    if MASKED or HEAD_DIM != BLOCK_D:
        return tl.load(at, mask=mask[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def key_pointer(K, Table, n, h, k_strides, GROUP: tl.constexpr):
    """Pointer to the first key of sequence n that head h sees."""
    b = tl.load(Table + n * 5).to(tl.int64)
    start = tl.load(Table + n * 5 + 3).to(tl.int64)
    kv_head = (h // GROUP).to(tl.int64)
    return K + b * k_strides[0] + kv_head * k_strides[1] + start * k_strides[2]


@triton.jit
def page_pointer(PageTable, n, stride, PAGE_SIZE: tl.constexpr):
    """Pointer to the pages of sequence n; nothing without a page table."""
    pages = PageTable
    if PAGE_SIZE > 0:
        pages += n.to(tl.int64) * stride
    return pages


@triton.jit
def query_pointer(Q, Table, n, h, q_strides, BY_SEQUENCE: tl.constexpr):
    """Pointer to what the rows of sequence n and head h are counted from."""
    b = n.to(tl.int64)
    if not BY_SEQUENCE:
        b = tl.load(Table + n * 5).to(tl.int64)
    return Q + b * q_strides[0] + h.to(tl.int64) * q_strides[1]


@triton.jit
def load_rows(Q, at, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of q `[rows, BLOCK_D]`; zero where there is none."""
    d = tl.arange(0, BLOCK_D)
    q_ptr = Q + at.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(q_ptr, mask=(at >= 0)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)


@triton.jit(do_not_specialize=["num_rows", "tiles"])
def row_lse_kernel(
    Q, K, At, Position, Table, PageTable, Parts, q_strides, k_strides, page_table_stride,
    num_rows, tiles, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
    BY_SEQUENCE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Log2-sum-exp2 of a tile of scored rows over one chunk of the keys: `[chunks, N, H, rows]`."""
    n, h = tl.program_id(2), tl.program_id(1)
    tile, chunk = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    flat = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    listed = tl.minimum(flat, num_rows - 1) + n * num_rows
    at = tl.load(At + listed)
    position = tl.load(Position + listed)
    there = (at >= 0) & (flat < num_rows)
    Q = query_pointer(Q, Table, n, h, q_strides, BY_SEQUENCE)
    q = load_rows(Q, tl.where(there, at, -1), q_strides[2], HEAD_DIM, BLOCK_D)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = tl.load(Table + n * 5 + 4)

    m = tl.zeros([BLOCK_M], tl.float32) + FLOOR
    total = tl.zeros([BLOCK_M], tl.float32)
    step = tl.arange(0, BLOCK_N)
    start = chunk * CHUNK
    stop = tl.minimum(tl.max(tl.where(there, position, -1)) + 1, start + CHUNK)
    open_to = tl.maximum(tl.minimum(tl.min(position) + 1, stop), start)
    open_to = start + (open_to - start) // BLOCK_N * BLOCK_N
    for j in range(bound(start), bound(open_to), BLOCK_N):
        k = load_keys(
            K, j + step, step >= 0, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, False
        )
        s = tl.dot(q, tl.trans(k))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s * scale - m_new[:, None]), 1)
        m = m_new
    for j in range(bound(open_to), bound(stop), BLOCK_N):
        keys = j + step
        k = load_keys(
            K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        s = tl.dot(q, tl.trans(k))
        s = tl.where(keys[None, :] <= position[:, None], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s * scale - m_new[:, None]), 1)
        m = m_new
    part = (chunk * tl.num_programs(2) + n).to(tl.int64) * NUM_HEADS + h
    tl.store(Parts + part * num_rows + flat, m + tl.log2(total), mask=flat < num_rows)


@triton.jit(do_not_specialize=["num_rows", "chunks"])
def merge_lse_kernel(
    Parts, At, Lse, Dense, num_rows, chunks, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Log2-sum-exp2 of scored rows over all chunks of the keys; infinity for no row.

    Where it is not finite the row's segment, of ROWS rows, becomes dense, unless Dense is None.
    """
    n, h = tl.program_id(2), tl.program_id(1)
    head = (n * tl.num_programs(1) + h).to(tl.int64)
    flat = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < num_rows
    at = tl.load(At + n * num_rows + flat, mask=inside, other=-1)
    m = tl.zeros([BLOCK], tl.float32) + FLOOR
    total = tl.zeros([BLOCK], tl.float32)
    step = tl.num_programs(2).to(tl.int64) * tl.num_programs(1) * num_rows
    for c in range(0, bound(chunks)):
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
    Mass, Class, at, mass, write, LOWEST_BITS: tl.constexpr, HIGHEST_CLASS: tl.constexpr
):  # fmt: skip
    """Write means, their rank classes (exponent and 3 mantissa bits), or both: None is left out."""
    if Mass is not None:
        tl.store(Mass + at, mass.to(Mass.dtype.element_ty), mask=write)
    if Class is not None:
        steps = (mass.to(tl.int32, bitcast=True) >> 20) - LOWEST_BITS
        rank_class = tl.minimum(tl.maximum(steps, 0), HIGHEST_CLASS)
        tl.store(Class + at, rank_class.to(tl.uint8), mask=write)


@triton.jit
def open_limits(Limits, Dense, n, head, segment, inside, num_segments):
    """Columns that each of a tile's segments can list; 0 where it is dense or not inside."""
    flags = tl.load(Dense + head * num_segments + segment, mask=inside, other=1)
    return tl.load(Limits + n * num_segments + segment, mask=inside & (flags == 0), other=0)


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def segment_mass_kernel(
    Q, K, At, Edge, Lse, Limits, Share, Dense, Table, PageTable, Mass, Class, q_strides, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, pitch, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    LOWEST_BITS: tl.constexpr, HIGHEST_CLASS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr, BY_SEQUENCE: tl.constexpr,
):  # fmt: skip
    """Mean probability of CHUNK keys under the rows of the segments that share a tile of rows.

    Row c of the tile belongs to segment `c % SEGMENTS`, so that a thread holds whole sums. Written
    is up to the largest limit of the segments that are not dense already.
    """
    SEGMENTS: tl.constexpr = BLOCK_M // ROWS
    n, h = tl.program_id(2), tl.program_id(1)
    chunks = tl.cdiv(pitch, CHUNK)
    tile = first_segment // SEGMENTS + tl.program_id(0) // chunks
    head = (n * NUM_HEADS + h).to(tl.int64)
    segment = tile * SEGMENTS + tl.arange(0, SEGMENTS)
    inside = (segment >= first_segment) & (segment < last_segment)
    limit = open_limits(Limits, Dense, n, head, segment, inside, num_segments)
    start = tl.program_id(0) % chunks * CHUNK
    stop = tl.minimum(tl.max(limit), start + CHUNK)
    if start >= stop:
        return
    c = tl.arange(0, BLOCK_M)
    g = tile * SEGMENTS + c % SEGMENTS
    there = g < last_segment
    row = g * ROWS + c // SEGMENTS
    at = tl.load(At + n * num_segments * ROWS + row, mask=there, other=-1)
    edge = tl.load(Edge + n * num_segments * ROWS + row, mask=there, other=2147483647)
    lse = tl.load(Lse + head * num_segments * ROWS + row, mask=there, other=float("inf"))
    share = tl.load(Share + n * num_segments + segment, mask=inside, other=0.0)
    Q = query_pointer(Q, Table, n, h, q_strides, BY_SEQUENCE)
    q = load_rows(Q, at, q_strides[2], HEAD_DIM, BLOCK_D)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = tl.load(Table + n * 5 + 4)
    out = head * (last_segment - first_segment) * pitch
    out += (segment - first_segment).to(tl.int64)[None, :] * pitch
    step = tl.arange(0, BLOCK_N)
    # keys left of every row's edge need no mask
    open_to = start + tl.maximum(tl.minimum(tl.min(edge), stop) - start, 0) // BLOCK_N * BLOCK_N
    for j in range(bound(start), bound(open_to), BLOCK_N):
        k = load_keys(
            K, j + step, step >= 0, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, False
        )
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])
        mass = tl.sum(tl.reshape(p, [BLOCK_N, ROWS, SEGMENTS]), 1) * share[None, :]
        write = inside[None, :] & (step >= 0)[:, None]
        store_mass(Mass, Class, out + (j + step)[:, None], mass, write, LOWEST_BITS, HIGHEST_CLASS)
    for j in range(bound(open_to), bound(stop), BLOCK_N):
        keys = j + step
        k = load_keys(
            K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])
        p = tl.where(keys[:, None] < edge[None, :], p, 0.0)
        mass = tl.sum(tl.reshape(p, [BLOCK_N, ROWS, SEGMENTS]), 1) * share[None, :]
        write = inside[None, :] & (keys < pitch)[:, None]
        store_mass(Mass, Class, out + keys[:, None], mass, write, LOWEST_BITS, HIGHEST_CLASS)


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments", "tiles"])
def column_mass_kernel(
    Q, K, At, Edge, Lse, Share, Table, PageTable, Mass, Class, q_strides, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, pitch, scale, tiles,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TILES: tl.constexpr,
    LOWEST_BITS: tl.constexpr, HIGHEST_CLASS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr, BY_SEQUENCE: tl.constexpr,
):  # fmt: skip
    """`segment_mass_kernel` for segments of several tiles of rows: keys stay and rows stream by.

    The second axis of the grid counts heads and segments. Everything up to the pitch is written.
    BLOCK_TILES: a power of two, at least `tiles`, which grows with the call and compiles nothing.
    """
    n, h = tl.program_id(2), tl.program_id(1) % NUM_HEADS
    segment = first_segment + tl.program_id(1) // NUM_HEADS
    head = (n * NUM_HEADS + h).to(tl.int64)
    first_row = segment * tiles * BLOCK_M
    At += n * num_segments * tiles * BLOCK_M + first_row
    Edge += n * num_segments * tiles * BLOCK_M + first_row
    Lse += head * num_segments * tiles * BLOCK_M + first_row
    start = tl.program_id(0) * BLOCK_N
    keys = start + tl.arange(0, BLOCK_N)
    # edges rise with the rows: from which tile on are some of these keys counted, and all of them
    t = tl.arange(0, BLOCK_TILES)
    low = tl.load(Edge + t * BLOCK_M, mask=t < tiles, other=2147483647)
    high = tl.load(Edge + t * BLOCK_M + BLOCK_M - 1, mask=t < tiles, other=2147483647)
    some_from = tl.sum((high <= start).to(tl.int32))
    all_from = tl.maximum(tl.sum((low < start + BLOCK_N).to(tl.int32)), some_from)

    Q = query_pointer(Q, Table, n, h, q_strides, BY_SEQUENCE)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = tl.load(Table + n * 5 + 4)
    k = load_keys(
        K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
    )
    c = tl.arange(0, BLOCK_M)
    mass = tl.zeros([BLOCK_N], tl.float32)
    for i in range(bound(some_from), bound(all_from)):
        row = i * BLOCK_M + c
        q = load_rows(Q, tl.load(At + row), q_strides[2], HEAD_DIM, BLOCK_D)
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - tl.load(Lse + row)[None, :])
        mass += tl.sum(tl.where(keys[:, None] < tl.load(Edge + row)[None, :], p, 0.0), 1)
    for i in range(bound(all_from), bound(tiles)):
        row = i * BLOCK_M + c
        q = load_rows(Q, tl.load(At + row), q_strides[2], HEAD_DIM, BLOCK_D)
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - tl.load(Lse + row)[None, :])
        mass += tl.sum(p, 1)
    mass *= tl.load(Share + n * num_segments + segment)
    out = (head * (last_segment - first_segment) + segment - first_segment) * pitch
    store_mass(Mass, Class, out + keys, mass, keys < pitch, LOWEST_BITS, HIGHEST_CLASS)
