"""Rows of a segment that are least like its others, and the columns that each of them needs.

    q ─► outliers ─► scores: normalisers, largest score of each block of columns
                 ─► peaks, in the blocks that can hold one

No pass over all columns writes more than one number for a block of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mass_kernel import FLOOR, key_pointer, load_keys, open_limits, page_pointer
from .spread_kernel import segment_rows

PEAK_CLASS = tl.constexpr(255)
"""Class of columns that are kept in any case; ranks end below."""


@triton.jit(do_not_specialize=["num_segments"])
def outlier_kernel(
    Q, Table, Dense, Outliers, q_strides, num_segments,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr, BLOCK_M: tl.constexpr,
    OUTLIERS: tl.constexpr,
):  # fmt: skip
    """Numbers of the rows of each segment farthest from their mean and from those before.

    int32 `[N, H, G, OUTLIERS]`. Past the last row some are named again.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    entry = (n * tl.num_programs(1) + h).to(tl.int64) * num_segments + g
    if tl.load(Dense + entry) != 0:
        return
    first, stop, offset = segment_rows(Table, n, g, SEGMENT)
    i, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    inside = first + i < stop
    rows = Q + tl.load(Table + n * 5).to(tl.int64) * q_strides[0] + h.to(tl.int64) * q_strides[1]
    rows += (tl.load(Table + n * 5 + 1) - offset + first).to(tl.int64) * q_strides[2] + d
    at = i.to(tl.int64)[:, None] * q_strides[2]
    q = tl.load(rows[None, :] + at, mask=inside[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    q = q.to(tl.float32)
    away = q - (tl.sum(q, 0) / (stop - first))[None, :]
    distance = tl.where(inside, tl.sum(away * away, 1), -1.0)
    for c in range(OUTLIERS):
        farthest = tl.argmax(distance, 0)
        tl.store(Outliers + entry * OUTLIERS + c, farthest)
        row = tl.load(rows + farthest.to(tl.int64) * q_strides[2], mask=d < HEAD_DIM, other=0.0)
        away = q - row.to(tl.float32)[None, :]
        distance = tl.minimum(distance, tl.sum(away * away, 1))


@triton.jit
def load_outliers(
    Q, Outliers, Table, n, h, list_of, segment, c, mask, q_strides,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr, OUTLIERS: tl.constexpr,
):  # fmt: skip
    """Outlier rows `c` of lists: queries and positions; past the last one it is named again."""
    first, _, offset = segment_rows(Table, n, segment, SEGMENT)
    at = list_of * OUTLIERS + tl.minimum(c, OUTLIERS - 1)
    p = first + tl.load(Outliers + at, mask=mask, other=0)
    d = tl.arange(0, BLOCK_D)
    base = Q + tl.load(Table + n * 5).to(tl.int64) * q_strides[0] + h.to(tl.int64) * q_strides[1]
    row = (tl.load(Table + n * 5 + 1) - offset + p).to(tl.int64) * q_strides[2]
    there = mask[:, None] & (d < HEAD_DIM)[None, :]
    return tl.load(base + row[:, None] + d[None, :], mask=there, other=0.0), p


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments", "num_blocks"])
def outlier_score_kernel(
    Q, K, Outliers, Limits, Dense, Table, PageTable, Largest, Sums, q_strides, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, num_blocks, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, OUTLIERS: tl.constexpr, COUNT: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of BLOCKS blocks of columns: each one's largest score of every outlier row, and log2 of sums.

    Largest `[N, H, G', blocks, COUNT]`, Sums `[N, H, G', blocks / BLOCKS, COUNT]`. One program for
    BLOCK_S segments of a head.
    """
    chunks = tl.cdiv(num_blocks, BLOCKS)
    h, n, chunk = tl.program_id(1), tl.program_id(2), tl.program_id(0) % chunks
    i = tl.arange(0, BLOCK_S * COUNT)
    segment = first_segment + tl.program_id(0) // chunks * BLOCK_S + i // COUNT
    head = (n * NUM_HEADS + h).to(tl.int64)
    limit = open_limits(
        Limits, Dense, n, head + 0 * i, segment, segment < last_segment, num_segments
    )
    there = limit > 0
    q, p = load_outliers(
        Q, Outliers, Table, n, h, head * num_segments + segment, segment, i % COUNT, there,
        q_strides, HEAD_DIM, BLOCK_D, SEGMENT, OUTLIERS,
    )  # fmt: skip
    p = tl.where(there, p, -1)
    start = chunk * (BLOCKS * BLOCK_N)
    stop = tl.minimum(tl.max(p) + 1, start + BLOCKS * BLOCK_N)
    if start >= stop:
        return
    seen = tl.min(tl.where(there, p, stop)) + 1  # keys that every row sees
    full = tl.maximum(start, tl.minimum(seen, stop) // BLOCK_N * BLOCK_N)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    lane = tl.arange(0, BLOCK_N)
    scratch = head * (last_segment - first_segment) + segment - first_segment
    Largest += scratch * num_blocks * COUNT + i % COUNT
    m = tl.full([BLOCK_S * COUNT], FLOOR, tl.float32)
    total = tl.zeros([BLOCK_S * COUNT], tl.float32)
    for j in range(start, full, BLOCK_N):
        k = load_keys(
            K, j + lane, lane >= 0, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, False
        )
        s = tl.dot(q, tl.trans(k))
        largest = tl.max(s, 1) * scale
        tl.store(Largest + j // BLOCK_N * COUNT, largest, mask=there)
        m_new = tl.maximum(m, largest)
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s * scale - m_new[:, None]), 1)
        m = m_new
    for j in range(full, stop, BLOCK_N):
        keys = j + lane
        k = load_keys(
            K, keys, keys < stop, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        s = tl.where(keys[None, :] <= p[:, None], tl.dot(q, tl.trans(k)), float("-inf"))
        largest = tl.max(s, 1) * scale
        tl.store(Largest + j // BLOCK_N * COUNT, largest, mask=there & (j < limit))
        m_new = tl.maximum(m, largest)
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s * scale - m_new[:, None]), 1)
        m = m_new
    at = (scratch * chunks + chunk) * COUNT + i % COUNT
    tl.store(Sums + at, m + tl.log2(total), mask=there & (start <= p))


@triton.jit(do_not_specialize=["pitch", "first_segment", "num_segments", "num_blocks"])
def peak_kernel(
    Q, K, Outliers, Limits, Dense, Table, PageTable, Largest, Sums, Class, Bits, q_strides,
    k_strides, page_table_stride, pitch, first_segment, num_segments, num_blocks, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, OUTLIERS: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, LANES: tl.constexpr, OCTAVES: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Class PEAK_CLASS and a bit for columns of more than 2^-OCTAVES of an outlier row's mass.

    One program per segment, head and sequence. ROWS rows are scored at once, at least COUNT.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = (n * NUM_HEADS + h).to(tl.int64)
    segment = first_segment + g
    limit = tl.load(Limits + n * num_segments + segment)
    if (tl.load(Dense + head * num_segments + segment) != 0) | (limit == 0):
        return
    scratch = head * tl.num_programs(0) + g
    r, lane = tl.arange(0, ROWS), tl.arange(0, LANES)
    q, p = load_outliers(
        Q, Outliers, Table, n, h, head * num_segments + segment + 0 * r, segment, r, r < ROWS,
        q_strides, HEAD_DIM, BLOCK_D, SEGMENT, OUTLIERS,
    )  # fmt: skip
    chunks = tl.cdiv(num_blocks, BLOCKS)
    own = tl.max(p) // (BLOCKS * BLOCK_N) + 1  # chunks that some row sees
    Sums += scratch * chunks * COUNT
    m = tl.full([LANES, ROWS], FLOOR, tl.float32)
    total = tl.zeros([LANES, ROWS], tl.float32)
    for first in range(0, own, LANES):
        chunk = (first + lane)[:, None]
        seen = (chunk < own) & (chunk * (BLOCKS * BLOCK_N) <= p[None, :])
        at = chunk * COUNT + tl.minimum(r, COUNT - 1)[None, :]
        part = tl.load(Sums + at, mask=seen, other=float("-inf"))
        m_new = tl.maximum(m, part)
        total = total * tl.exp2(m - m_new) + tl.exp2(part - m_new)
        m = m_new
    top = tl.max(m, 0)
    least = top + tl.log2(tl.sum(total * tl.exp2(m - top[None, :]), 0)) - OCTAVES
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    Largest += scratch * num_blocks * COUNT
    Class += scratch * pitch
    Bits += scratch * (pitch // 32)
    column, word = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_N // 32)
    bit = 1 << column % 32
    for first in range(0, tl.cdiv(limit, BLOCK_N), LANES):
        block = first + lane
        at = block[:, None] * COUNT + tl.minimum(r, COUNT - 1)[None, :]
        there = (block * BLOCK_N < limit)[:, None]
        largest = tl.load(Largest + at, mask=there, other=float("-inf"))
        holds = tl.max(tl.where(largest >= least[None, :], 1, 0), 1)
        for _ in range(0, tl.sum(holds, 0)):
            i = tl.argmax(holds, 0)
            holds = tl.where(lane == i, 0, holds)
            keys = (first + i) * BLOCK_N + column
            k = load_keys(
                K, keys, keys < limit, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
            )
            s = tl.dot(k, tl.trans(q)) * scale
            found = (tl.max(tl.where(s > least[None, :], 1, 0), 1) > 0) & (keys < limit)
            tl.store(Class + keys, tl.full([BLOCK_N], PEAK_CLASS, tl.uint8), mask=found)
            flags = tl.sum(tl.reshape(tl.where(found, bit, 0), [BLOCK_N // 32, 32]), 1)
            words = Bits + (first + i) * (BLOCK_N // 32) + word
            old = tl.load(words, mask=flags != 0, other=0)
            tl.store(words, old | flags, mask=flags != 0)
