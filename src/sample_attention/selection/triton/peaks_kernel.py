"""Sampled rows of a segment that are least like the others, and the columns that each one needs.

q ─► outliers ─► peaks: a bit for each column, from the normalisers that counting has found
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loop_kernel import bound
from .column_mass_kernel import key_pointer, load_keys, open_limits, page_pointer
from .sampled_mass_kernel import load_sampled


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def outlier_kernel(
    Q, Table, Limits, Dense, Outliers, q_strides, num_segments, first_segment,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    ROW_STRIDE: tl.constexpr, ROWS: tl.constexpr, OUTLIERS: tl.constexpr,
):  # fmt: skip
    """Numbers of the sampled rows farthest from their mean and from those before.

    int32 `[N, H, G', OUTLIERS]`. One program per segment, head and sequence. Past the last row some
    are named again.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = (n * tl.num_programs(1) + h).to(tl.int64)
    segment = first_segment + g
    limit = tl.load(Limits + n * num_segments + segment)
    if (tl.load(Dense + head * num_segments + segment) != 0) | (limit == 0):
        return
    r = tl.arange(0, ROWS)
    q, _, there, rows, _ = load_sampled(
        Q, Table, n, segment, h + 0 * r, r, q_strides, HEAD_DIM, BLOCK_D, SEGMENT, ROW_STRIDE
    )
    q = q.to(tl.float32)
    away = q - (tl.sum(q, 0) / rows)[None, :]
    distance = tl.where(there, tl.sum(away * away, 1), -1.0)
    Outliers += (head * tl.num_programs(0) + g) * OUTLIERS
    for i in range(OUTLIERS):
        farthest = tl.argmax(distance, 0)
        tl.store(Outliers + i, farthest)
        away = q - tl.sum(tl.where((r == farthest)[:, None], q, 0.0), 0)[None, :]
        distance = tl.minimum(distance, tl.sum(away * away, 1))


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments", "pitch"])
def peak_kernel(
    Q, K, Table, PageTable, Limits, Dense, Outliers, Shift, Peaks, q_strides, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, pitch, scale, high,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, ROW_STRIDE: tl.constexpr, ROWS: tl.constexpr, OUTLIERS: tl.constexpr,
    COUNT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
    OCTAVES: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A bit for each of CHUNK columns that holds more than 2^-OCTAVES of an outlier row's mass.

    int32 `[N, H, G', pitch / 16]`, in the upper half those of `high` octaves more: sixteen keys of
    a tile lie in one warp, which sums their bits by itself. One program for BLOCK_S segments of a
    head, each with COUNT rows, OUTLIERS or more. The last words may reach past a segment's limit.
    """
    h, n, chunks = tl.program_id(1), tl.program_id(2), tl.cdiv(pitch, CHUNK)
    start = first_segment + tl.program_id(0) // chunks * BLOCK_S
    head = (n * NUM_HEADS + h).to(tl.int64)
    c, s = tl.arange(0, COUNT * BLOCK_S), tl.arange(0, BLOCK_S)
    segment = start + c % BLOCK_S  # rows of one segment lie BLOCK_S apart: a thread holds them all
    limit = open_limits(
        Limits, Dense, n, head + 0 * c, segment, segment < last_segment, num_segments
    )
    begin = tl.program_id(0) % chunks * CHUNK
    stop = tl.minimum(tl.max(limit), begin + CHUNK)
    if begin >= stop:
        return
    scratch = head * (last_segment - first_segment) + segment - first_segment
    at = scratch * OUTLIERS + tl.minimum(c // BLOCK_S, OUTLIERS - 1)
    i = tl.load(Outliers + at, mask=limit > 0, other=0)
    q, _, _, rows, _ = load_sampled(
        Q, Table, n, segment, h + 0 * c, i, q_strides, HEAD_DIM, BLOCK_D, SEGMENT, ROW_STRIDE
    )
    shift = tl.load(Shift + scratch * ROWS + i, mask=limit > 0, other=float("inf"))
    least = shift - tl.log2(tl.maximum(rows, 1).to(tl.float32)) - OCTAVES
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = tl.load(Table + n * 5 + 4)
    limit = open_limits(
        Limits, Dense, n, head + 0 * s, start + s, start + s < last_segment, num_segments
    )
    Peaks += (head * (last_segment - first_segment) + start + s - first_segment) * (pitch // 16)
    lane, word = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_N // 16)
    bit = (1 << lane % 16)[:, None]
    for j in range(bound(begin), bound(stop), BLOCK_N):
        keys = j + lane
        k = load_keys(
            K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        over = tl.dot(k, tl.trans(q)) * scale - least[None, :]
        most = tl.max(tl.reshape(over, [BLOCK_N, COUNT, BLOCK_S]), 1)
        flags = tl.where(most > 0, bit, 0) | tl.where(most > high, bit << 16, 0)
        flags = tl.sum(tl.reshape(flags, [BLOCK_N // 16, 16, BLOCK_S]), 1)
        tl.store(Peaks[None, :] + j // 16 + word[:, None], flags, mask=(j < limit)[None, :])
