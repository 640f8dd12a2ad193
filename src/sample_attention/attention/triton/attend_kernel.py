"""Attention over a plan's pairs in one launch: listed keys gathered by index, then the window.

A program owns BLOCK_M rows of one segment, head and sequence. It folds tiles of BLOCK_N keys into
a running softmax: those of the band (window and causal diagonal, contiguous) and those of the list
(rows of K and V loaded by index). Only tiles at an edge are masked. Dense segments are a band from
key 0. With a paged cache every key, of the band or of the list, is looked up in the page table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loop_kernel import bound
from ...kernels.paging_kernel import key_offsets

FLOOR = tl.constexpr(-1.0e30)
"""Running maximum before the first key: finite, so that empty rows never meet inf - inf."""


@triton.jit
def fold_tile(
    acc, total, m, q, k_base, v_base, k_strides, v_strides, pages, keys, load, keep, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
    ALIKE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold keys `[BLOCK_N]` into (acc `[BLOCK_M, BLOCK_D]`, total, m `[BLOCK_M]`); m is in log2."""
    d = tl.arange(0, BLOCK_D)
    there = load if MASKED else None
    at = key_offsets(keys, there, pages, k_strides[0], k_strides[2], PAGE_SIZE, WIDE)[:, None]
    if MASKED or HEAD_DIM != BLOCK_D:
        read = load[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(k_base + at + d[None, :], mask=read, other=0.0)
    else:
        k = tl.load(k_base + at + d[None, :])
    s = tl.dot(q, tl.trans(k))  # [BLOCK_M, BLOCK_N]
    if MASKED:
        s = tl.where(keep, s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - m_new[:, None])
    shrink = tl.exp2(m - m_new)
    total = total * shrink + tl.sum(p, 1)
    acc = acc * shrink[:, None]
    if not ALIKE:
        at = key_offsets(keys, there, pages, v_strides[0], v_strides[2], PAGE_SIZE, WIDE)[:, None]
    if MASKED or HEAD_DIM != BLOCK_D:
        read = load[:, None] & (d < HEAD_DIM)[None, :]
        v = tl.load(v_base + at + d[None, :], mask=read, other=0.0)
    else:
        v = tl.load(v_base + at + d[None, :])
    acc = tl.dot(p.to(v.dtype), v, acc)
    return acc, total, m_new


@triton.jit
def list_keys(list_ptr, slot, there, absent, KEY_BLOCK: tl.constexpr):
    """The keys in slots of a list; `absent` where there is none."""
    if KEY_BLOCK == 1:
        keys = tl.load(list_ptr + slot, mask=there, other=absent)
    else:
        blocks = tl.load(list_ptr + slot // KEY_BLOCK, mask=there, other=0)
        keys = tl.where(there, blocks * KEY_BLOCK + slot % KEY_BLOCK, absent)
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
    """One tile of rows; LISTS_LEFT: every list ends left of its rows' windows.

    PAGE_SIZE 0: PageTable is None and keys lie one after another. WIDE: offsets need 64 bits.
    ALIKE: k and v have the same strides.
    """
    n, h = tl.program_id(2), tl.program_id(1)
    b = tl.load(Table + n * 5).to(tl.int64)
    q_start, q_len = tl.load(Table + n * 5 + 1), tl.load(Table + n * 5 + 2)
    kv_start, kv_len = tl.load(Table + n * 5 + 3), tl.load(Table + n * 5 + 4)
    offset = kv_len - q_len
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
    rows = t * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = (rows >= first) & (rows < last)
    entry = (n * NUM_HEADS + h) * num_segments + first // segment - offset // segment
    every = is_tail | (tl.load(Dense + entry) != 0)
    window = tl.load(Window + n)
    edges = tl.maximum(rows // ALIGN * ALIGN - window + 1, 0)  # first key of each row's window
    edge_min = tl.maximum(first // ALIGN * ALIGN - window + 1, 0)
    edge_max = tl.maximum((last - 1) // ALIGN * ALIGN - window + 1, 0)
    if every:
        edges = tl.zeros_like(edges)
        edge_min = edge_min * 0
        edge_max = edge_max * 0

    d = tl.arange(0, BLOCK_D)
    at = (q_start + rows - offset).to(tl.int64)
    head, kv_head = h.to(tl.int64), (h // GROUP).to(tl.int64)
    q_ptr = Q + b * q_strides[0] + head * q_strides[1] + at[:, None] * q_strides[2] + d[None, :]
    q = tl.load(q_ptr, mask=valid[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    from_key = kv_start.to(tl.int64)
    k_base = K + b * k_strides[0] + kv_head * k_strides[1] + from_key * k_strides[2]
    v_base = V + b * v_strides[0] + kv_head * v_strides[1] + from_key * v_strides[2]
    pages = PageTable
    if PAGE_SIZE > 0:  # the sequence's row; batch and first key are 0
        pages += n.to(tl.int64) * page_table_stride
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    m = tl.zeros([BLOCK_M], tl.float32) + FLOOR
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
        there = tl.where(in_list, step < remaining, False)
        keys = list_keys(list_ptr, slot + step, there, kv_len, KEY_BLOCK)
        keys = tl.where(in_list, keys, j + step)
        if LISTS_LEFT:  # each row keeps a range of the tile, so no key stays in a register
            lowest = tl.where(in_list, 0, edges - j)
            highest = tl.where(in_list, remaining - 1, rows - j)
            keep = (step[None, :] >= lowest[:, None]) & (step[None, :] <= highest[:, None])
        else:
            right = keys[None, :] >= edges[:, None]
            keep = (right != in_list) & (keys[None, :] <= rows[:, None])
        acc, total, m = fold_tile(
            acc, total, m, q, k_base, v_base, k_strides, v_strides, pages, keys, keys < kv_len,
            keep, scale, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, ALIKE, True,
        )  # fmt: skip
    for i in range(0, bound(band_tiles + list_tiles)):
        in_list = i >= band_tiles
        slot = (i - band_tiles) * BLOCK_N + step
        there = tl.where(in_list, slot >= 0, False)
        keys = list_keys(list_ptr, slot, there, kv_len, KEY_BLOCK)
        keys = tl.where(in_list, keys, open_from + i * BLOCK_N + step)
        acc, total, m = fold_tile(
            acc, total, m, q, k_base, v_base, k_strides, v_strides, pages, keys, open_tile,
            open_tile, scale, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, ALIKE, False,
        )  # fmt: skip

    # Found again, so that nothing of a row stays in registers through the loops.
    b = tl.load(Table + n * 5, volatile=True).to(tl.int64)
    q_start = tl.load(Table + n * 5 + 1, volatile=True)
    d = tl.arange(0, BLOCK_D)
    at = q_start - offset + t * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = (at >= q_start - offset + first) & (at < q_start - offset + last)
    at = at.to(tl.int64)
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_ptr = (
        Out + b * out_strides[0] + head * out_strides[1] + at[:, None] * out_strides[2] + d[None, :]
    )
    tl.store(out_ptr, out.to(Out.dtype.element_ty), mask=valid[:, None] & (d < HEAD_DIM)[None, :])
    lse = tl.where(total > 0, (m + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    tl.store(Lse + (b * NUM_HEADS + head) * lse_stride + at, lse, mask=valid)
