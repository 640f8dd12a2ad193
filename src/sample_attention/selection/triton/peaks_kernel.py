"""Sampled rows of a segment that are farthest from the others, and the columns that each one needs.

q ─► farthest rows ─► peaks: a bit for each column, from the normalisers that counting has found

N sequences, H heads, G segments, G' segments of one launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loads_kernel import (
    key_pointer,
    load_keys,
    load_sampled,
    load_sequence,
    page_pointer,
)
from ...kernels.loop_kernel import bound
from .tile_kernel import open_limits


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def farthest_rows_kernel(
    Q, Table, Limits, Dense, FarthestRows, q_strides, num_segments, first_segment,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    SAMPLE_STRIDE: tl.constexpr, ROWS: tl.constexpr, FARTHEST: tl.constexpr,
):  # fmt: skip
    """FarthestRows int32 `[N, H, G', FARTHEST]`: sampled rows far from their mean and those before.

    One program per segment, head and sequence, with ROWS or fewer sampled rows. Past the last row
    some are named again.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = (n * tl.num_programs(1) + h).to(tl.int64)
    segment = first_segment + g
    limit = tl.load(Limits + n * num_segments + segment)
    if (tl.load(Dense + head * num_segments + segment) != 0) | (limit == 0):
        return
    # [ROWS]
    r = tl.arange(0, ROWS)
    # [ROWS, BLOCK_D]
    rows = load_sampled(
        Q, Table, n, segment, h + 0 * r, r, q_strides, HEAD_DIM, BLOCK_D, SEGMENT,
        SAMPLE_STRIDE,
    )  # fmt: skip
    q = rows.q.to(tl.float32)
    away = q - (tl.sum(q, 0) / rows.count)[None, :]
    # [ROWS]
    distance = tl.where(rows.valid, tl.sum(away * away, 1), -1.0)
    FarthestRows += (head * tl.num_programs(0) + g) * FARTHEST
    for i in range(FARTHEST):
        farthest = tl.argmax(distance, 0)
        tl.store(FarthestRows + i, farthest)
        # [ROWS, BLOCK_D]
        away = q - tl.sum(tl.where((r == farthest)[:, None], q, 0.0), 0)[None, :]
        # [ROWS]
        distance = tl.minimum(distance, tl.sum(away * away, 1))


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments", "pitch"])
def peak_kernel(
    Q, K, Table, PageTable, Limits, Dense, FarthestRows, LogNorm, Peaks, q_strides, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, pitch, scale, high,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, SAMPLE_STRIDE: tl.constexpr, ROWS: tl.constexpr, FARTHEST: tl.constexpr,
    COUNT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
    OCTAVES: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Peaks int32 `[N, H, G', pitch / 16]`: a bit for a column with much of a farthest row's mass.

    Much is more than 2^-OCTAVES, in the upper half of a word `high` octaves more: sixteen keys of a
    tile lie in one warp, which sums their bits by itself. One program per CHUNK columns of BLOCK_S
    segments, head and sequence; a segment has COUNT rows, FARTHEST or more. The last words may
    reach past a segment's limit.
    """
    h, n, chunks = tl.program_id(1), tl.program_id(2), tl.cdiv(pitch, CHUNK)
    start = first_segment + tl.program_id(0) // chunks * BLOCK_S
    head = (n * NUM_HEADS + h).to(tl.int64)
    # [COUNT * BLOCK_S], [BLOCK_S]
    c, s = tl.arange(0, COUNT * BLOCK_S), tl.arange(0, BLOCK_S)
    segment = start + c % BLOCK_S  # rows of one segment lie BLOCK_S apart: a thread holds them all
    limit = open_limits(
        Limits, Dense, n, head + 0 * c, segment, segment < last_segment, num_segments
    )
    begin = tl.program_id(0) % chunks * CHUNK
    stop = tl.minimum(tl.max(limit), begin + CHUNK)
    if begin >= stop:
        return
    # [COUNT * BLOCK_S]
    place = head * (last_segment - first_segment) + segment - first_segment
    offs = place * FARTHEST + tl.minimum(c // BLOCK_S, FARTHEST - 1)
    i = tl.load(FarthestRows + offs, mask=limit > 0, other=0)
    # [COUNT * BLOCK_S, BLOCK_D]
    rows = load_sampled(
        Q, Table, n, segment, h + 0 * c, i, q_strides, HEAD_DIM, BLOCK_D, SEGMENT, SAMPLE_STRIDE
    )
    # [COUNT * BLOCK_S]
    log_norm = tl.load(LogNorm + place * ROWS + i, mask=limit > 0, other=float("inf"))
    least = log_norm - tl.log2(tl.maximum(rows.count, 1).to(tl.float32)) - OCTAVES
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = load_sequence(Table, n).kv_len
    # [BLOCK_S]
    limit = open_limits(
        Limits, Dense, n, head + 0 * s, start + s, start + s < last_segment, num_segments
    )
    Peaks += (head * (last_segment - first_segment) + start + s - first_segment) * (pitch // 16)
    # [BLOCK_N], [BLOCK_N / 16]
    lane, word = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_N // 16)
    # [BLOCK_N, 1]
    bit = (1 << lane % 16)[:, None]
    for j in range(bound(begin), bound(stop), BLOCK_N):
        # [BLOCK_N]
        keys = j + lane
        # [BLOCK_N, BLOCK_D]
        k = load_keys(
            K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        # [BLOCK_N, COUNT * BLOCK_S]
        over = tl.dot(k, tl.trans(rows.q)) * scale - least[None, :]
        # [BLOCK_N, BLOCK_S]
        most = tl.max(tl.reshape(over, [BLOCK_N, COUNT, BLOCK_S]), 1)
        flags = tl.where(most > 0, bit, 0) | tl.where(most > high, bit << 16, 0)
        # [BLOCK_N / 16, BLOCK_S]
        flags = tl.sum(tl.reshape(flags, [BLOCK_N // 16, 16, BLOCK_S]), 1)
        tl.store(Peaks[None, :] + j // 16 + word[:, None], flags, mask=(j < limit)[None, :])
