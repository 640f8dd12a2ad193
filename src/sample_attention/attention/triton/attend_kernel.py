"""Attention over a plan's pairs in one launch: listed keys gathered by index, then the window.

A program owns BLOCK_M rows of one segment, head and sequence. It folds tiles of BLOCK_N keys into
a running softmax: those of the band (window and causal diagonal, contiguous) and those of the list
(rows of K and V loaded by index). Only tiles at an edge are masked. Dense segments are a band from
key 0. With a paged cache every key, of the band or of the list, is looked up in the page table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loads_kernel import (
    first_in_window,
    key_offsets,
    key_pointer,
    load_sequence,
    page_pointer,
    reload_start,
)
from ...kernels.loop_kernel import bound
from ...kernels.lse_kernel import FLOOR


@triton.jit
def fold_tile(
    acc, total, m, q, k_base, v_base, k_strides, v_strides, pages, keys, load, keep, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
    ALIKE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold keys `[BLOCK_N]` into (acc `[BLOCK_M, BLOCK_D]`, total, m `[BLOCK_M]`); m is in log2."""
    # [BLOCK_D]
    d = tl.arange(0, BLOCK_D)
    valid = load if MASKED else None
    # [BLOCK_N, 1]
    offs = key_offsets(keys, valid, pages, k_strides[0], k_strides[2], PAGE_SIZE, WIDE)[:, None]
    # [BLOCK_N, BLOCK_D]
    if MASKED or HEAD_DIM != BLOCK_D:
        read = load[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(k_base + offs + d[None, :], mask=read, other=0.0)
    else:
        k = tl.load(k_base + offs + d[None, :])
    # [BLOCK_M, BLOCK_N]
    s = tl.dot(q, tl.trans(k))
    if MASKED:
        s = tl.where(keep, s, float("-inf"))
    # [BLOCK_M]
    m_new = tl.maximum(m, tl.max(s, 1) * scale)
    # [BLOCK_M, BLOCK_N]
    p = tl.exp2(s * scale - m_new[:, None])
    # [BLOCK_M]
    shrink = tl.exp2(m - m_new)
    total = total * shrink + tl.sum(p, 1)
    # [BLOCK_M, BLOCK_D]
    acc = acc * shrink[:, None]
    if not ALIKE:
        offs = key_offsets(keys, valid, pages, v_strides[0], v_strides[2], PAGE_SIZE, WIDE)[:, None]
    # [BLOCK_N, BLOCK_D]
    if MASKED or HEAD_DIM != BLOCK_D:
        read = load[:, None] & (d < HEAD_DIM)[None, :]
        v = tl.load(v_base + offs + d[None, :], mask=read, other=0.0)
    else:
        v = tl.load(v_base + offs + d[None, :])
    # [BLOCK_M, BLOCK_D]
    acc = tl.dot(p.to(v.dtype), v, acc)
    return acc, total, m_new


@triton.jit
def list_keys(list_ptr, slot, valid, absent, KEY_BLOCK: tl.constexpr):
    """The keys in slots `[BLOCK_N]` of a list; `absent` where there is none."""
    # [BLOCK_N]
    if KEY_BLOCK == 1:
        keys = tl.load(list_ptr + slot, mask=valid, other=absent)
    else:
        blocks = tl.load(list_ptr + slot // KEY_BLOCK, mask=valid, other=0)
        keys = tl.where(valid, blocks * KEY_BLOCK + slot % KEY_BLOCK, absent)
    return keys


@triton.jit
def count_below(list_ptr, count, limit):
    """Entries of a sorted list that are smaller than `limit`."""
    lo = 0
    hi = count
    while lo < hi:
        middle = (lo + hi) // 2
        below = tl.load(list_ptr + middle) < limit
        lo = tl.where(below, middle + 1, lo)
        hi = tl.where(below, hi, middle)
    return lo


@triton.jit(do_not_specialize=["lse_stride", "num_segments", "segment", "dense_tail", "tail_tiles"])
def attend_kernel(
    Q, K, V, Out, Lse, Table, PageTable, Window, Indices, Offsets, Counts, Dense,
    q_strides, k_strides, v_strides, out_strides, lse_stride,
    page_table_stride, num_segments, segment, dense_tail, tail_tiles, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ALIGN: tl.constexpr, KEY_BLOCK: tl.constexpr,
    LISTS_LEFT: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr, ALIKE: tl.constexpr,
):  # fmt: skip
    """Out `[B, H, Sq, D]` and Lse fp32 `[B, H, Sq]`: attention of rows of Q to the keys of a plan.

    The plan is Window int32 `[N]`, Indices int32 `[capacity]`, Offsets int64, Counts int32 and
    Dense int8 `[N, H, G]`. One program per BLOCK_M rows of one segment, head and sequence.

    LISTS_LEFT: every list ends left of its rows' windows. PAGE_SIZE 0: PageTable is None and keys
    lie one after another. WIDE: offsets need 64 bits. ALIKE: k and v have the same strides.
    """
    n, h = tl.program_id(2), tl.program_id(1)
    sequence = load_sequence(Table, n)
    kv_len = sequence.kv_len
    offset = kv_len - sequence.q_len
    tail = tl.maximum(kv_len - dense_tail, offset)
    # heavy rows first: the dense tail, then tiles from the last to the first
    pid = tl.program_id(0)
    is_tail = pid < tail_tiles
    stop = tl.where(is_tail, kv_len, tail)
    t = (stop - 1) // BLOCK_M - tl.where(is_tail, pid, pid - tail_tiles)
    first = tl.maximum(t * BLOCK_M, tl.where(is_tail, tail, offset))
    last = tl.minimum((t + 1) * BLOCK_M, stop)  # past the last row
    if first >= last:
        return
    # [BLOCK_M]
    rows = t * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = (rows >= first) & (rows < last)
    entry = (n * NUM_HEADS + h) * num_segments + first // segment - offset // segment
    every = is_tail | (tl.load(Dense + entry) != 0)
    window = tl.load(Window + n)
    # [BLOCK_M]
    edges = first_in_window(rows, window, ALIGN)
    edge_min = first_in_window(first, window, ALIGN)
    edge_max = first_in_window(last - 1, window, ALIGN)
    if every:
        edges = tl.zeros_like(edges)
        edge_min = edge_min * 0
        edge_max = edge_max * 0

    # [BLOCK_D]
    d = tl.arange(0, BLOCK_D)
    # [BLOCK_M]
    offs = (sequence.q_start + rows - offset).to(tl.int64)
    head = h.to(tl.int64)
    # [BLOCK_M, BLOCK_D]
    q_base = Q + sequence.batch.to(tl.int64) * q_strides[0] + head * q_strides[1]
    q_ptr = q_base + offs[:, None] * q_strides[2] + d[None, :]
    q = tl.load(q_ptr, mask=valid[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    k_base = key_pointer(K, Table, n, h, k_strides, GROUP)
    v_base = key_pointer(V, Table, n, h, v_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    # [BLOCK_M, BLOCK_D]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # [BLOCK_M]
    total = tl.zeros([BLOCK_M], tl.float32)
    m = tl.zeros([BLOCK_M], tl.float32) + FLOOR
    # [BLOCK_N]
    step = tl.arange(0, BLOCK_N)
    open_tile = step >= 0  # every key is read and kept

    # The band: tiles where window edges differ, open tiles, the causal diagonal. The list: open
    # tiles of keys left of every row's window, a masked remainder. Masked tiles go through one loop
    # and open tiles through another, so that loads fill the pipeline twice and not five times.
    open_from = edge_min + tl.cdiv(edge_max - edge_min, BLOCK_N) * BLOCK_N
    band_tiles = tl.maximum(first + 1 - open_from, 0) // BLOCK_N
    edge_tiles = (open_from - edge_min) // BLOCK_N
    diagonal_from = open_from + band_tiles * BLOCK_N
    masked_band = edge_tiles + tl.cdiv(tl.maximum(last - diagonal_from, 0), BLOCK_N)
    list_ptr = Indices + tl.load(Offsets + entry)
    count = tl.where(every, 0, tl.load(Counts + entry))
    listed = count
    shared = count
    if not LISTS_LEFT:
        listed = count_below(list_ptr, count, tl.cdiv(edge_max, KEY_BLOCK))
        shared = count_below(list_ptr, listed, edge_min // KEY_BLOCK)
    list_tiles = shared * KEY_BLOCK // BLOCK_N
    masked_list = tl.cdiv(listed * KEY_BLOCK - list_tiles * BLOCK_N, BLOCK_N)

    # Two stages: these tiles are few, and a third would take registers from all.
    for i in tl.range(0, bound(masked_band + masked_list), num_stages=2):
        in_list = i >= masked_band
        j = tl.where(
            i < edge_tiles, edge_min + i * BLOCK_N, diagonal_from + (i - edge_tiles) * BLOCK_N
        )
        slot = (list_tiles + i - masked_band) * BLOCK_N
        remaining = listed * KEY_BLOCK - slot
        # [BLOCK_N]
        in_slots = tl.where(in_list, step < remaining, False)
        keys = list_keys(list_ptr, slot + step, in_slots, kv_len, KEY_BLOCK)
        keys = tl.where(in_list, keys, j + step)
        # [BLOCK_M, BLOCK_N]
        if LISTS_LEFT:  # each row keeps a range of the tile, so no key stays in a register
            lowest = tl.where(in_list, 0, edges - j)
            highest = tl.where(in_list, remaining - 1, rows - j)
            keep = (step[None, :] >= lowest[:, None]) & (step[None, :] <= highest[:, None])
        else:
            in_window = keys[None, :] >= edges[:, None]
            keep = (in_window != in_list) & (keys[None, :] <= rows[:, None])
        acc, total, m = fold_tile(
            acc, total, m, q, k_base, v_base, k_strides, v_strides, pages, keys, keys < kv_len,
            keep, scale, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, ALIKE, True,
        )  # fmt: skip
    for i in range(0, bound(band_tiles + list_tiles)):
        in_list = i >= band_tiles
        # [BLOCK_N]
        slot = (i - band_tiles) * BLOCK_N + step
        in_slots = tl.where(in_list, slot >= 0, False)
        keys = list_keys(list_ptr, slot, in_slots, kv_len, KEY_BLOCK)
        keys = tl.where(in_list, keys, open_from + i * BLOCK_N + step)
        acc, total, m = fold_tile(
            acc, total, m, q, k_base, v_base, k_strides, v_strides, pages, keys, open_tile,
            open_tile, scale, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, ALIKE, False,
        )  # fmt: skip

    # Found again, so that nothing of a row stays in registers through the loops.
    batch, q_start = reload_start(Table, n)
    b = batch.to(tl.int64)
    # [BLOCK_D]
    d = tl.arange(0, BLOCK_D)
    # [BLOCK_M]
    offs = q_start - offset + t * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = (offs >= q_start - offset + first) & (offs < q_start - offset + last)
    offs = offs.to(tl.int64)
    # [BLOCK_M, BLOCK_D]
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_base = Out + b * out_strides[0] + head * out_strides[1]
    out_ptr = out_base + offs[:, None] * out_strides[2] + d[None, :]
    tl.store(out_ptr, out.to(Out.dtype.element_ty), mask=valid[:, None] & (d < HEAD_DIM)[None, :])
    # [BLOCK_M]
    lse = tl.where(total > 0, (m + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    tl.store(Lse + (b * NUM_HEADS + head) * lse_stride + offs, lse, mask=valid)
