"""v3 on the device: probability per block of keys and of distances, for the tails of chunks."""

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


@triton.jit
def block_mass_kernel(
    Q, K, At, Position, Lse, Nearest, Table, PageTable, Column, Slash, q_strides, k_strides,
    page_table_stride, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SLOTS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Column fp32 `[N, H, chunks, blocks]`, Slash `[..., SLOTS]`: mass by block of keys, distances.

    One program per block of keys, chunk and head, and sequence. A block of keys and BLOCK_M
    neighbouring rows span SLOTS blocks of distances. The first of them is `Nearest - j` for block
    j, so that the sums of slashes need no atomics.
    """
    j, n = tl.program_id(0), tl.program_id(2)
    c, h = tl.program_id(1) // NUM_HEADS, tl.program_id(1) % NUM_HEADS
    chunks = tl.num_programs(1) // NUM_HEADS
    # [BLOCK_M]
    row = c * BLOCK_M + tl.arange(0, BLOCK_M)
    at = tl.load(At + n * chunks * BLOCK_M + row)
    position = tl.load(Position + n * chunks * BLOCK_M + row)
    lse = tl.load(Lse + (n * NUM_HEADS + h).to(tl.int64) * chunks * BLOCK_M + row)
    Q = query_pointer(Q, Table, n, h, q_strides, False)
    # [BLOCK_M, BLOCK_D]
    q = load_rows(Q, at, q_strides[2], HEAD_DIM, BLOCK_D)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    kv_len = load_sequence(Table, n).kv_len
    # [BLOCK_N]
    keys = j * BLOCK_N + tl.arange(0, BLOCK_N)
    # [BLOCK_N, BLOCK_D]
    k = load_keys(
        K, keys, keys < kv_len, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
    )
    # [BLOCK_M, BLOCK_N]
    p = tl.exp2(tl.dot(q, tl.trans(k)) * scale - lse[:, None])
    distance = position[:, None] - keys[None, :]
    p = tl.where(distance >= 0, p, 0.0)
    out = ((n * NUM_HEADS + h).to(tl.int64) * chunks + c) * tl.num_programs(0) + j
    tl.store(Column + out, tl.sum(p))
    # [BLOCK_M, BLOCK_N]
    slot = distance // BLOCK_N - (tl.load(Nearest + n * chunks + c) - j)
    for i in tl.static_range(SLOTS):
        hit = tl.where((slot == i) & (distance >= 0), p, 0.0)
        tl.store(Slash + out * SLOTS + i, tl.sum(hit))
