"""Loads on the device that selection and attention share: sequences, rows of q, keys by position.

Key j of a sequence lies in slot `j % PAGE_SIZE` of the page that entry `j // PAGE_SIZE` of its row
of the page table names. Without pages (PAGE_SIZE 0) keys lie one after another.

Table is int32 `[N, 5]`, Q `[B, H, Sq, D]`, K `[B, Hkv, Skv, D]` or pages `[P, Hkv, PAGE_SIZE, D]`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..problem import SequenceRow

SEQUENCE_FIELDS = tl.constexpr(len(SequenceRow._fields))
"""Numbers in a row of Table."""


class SegmentRows(NamedTuple):
    """Positions of a segment's first row and past its last, and of the first row of the call."""

    first: Any
    stop: Any
    offset: Any


class SampledTile(NamedTuple):
    """A tile of sampled rows.

    Attributes:
        q: `[rows, BLOCK_D]`, zero where there is no row.
        position: `[rows]`.
        valid: `[rows]`, where there is a row.
        count: sampled rows of the segment.
        stop: position past the segment's last row.
    """

    q: Any
    position: Any
    valid: Any
    count: Any
    stop: Any


@triton.jit
def load_sequence(Table, n):
    """Row n of Table as a `SequenceRow`; numbers that nothing asks for are not loaded."""
    row = Table + n * SEQUENCE_FIELDS
    return SequenceRow(
        tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    )


@triton.jit
def reload_start(Table, n):
    """Batch and q_start of sequence n once more: no register holds them from the first load on."""
    row = Table + n * SEQUENCE_FIELDS
    return tl.load(row, volatile=True), tl.load(row + 1, volatile=True)


@triton.jit
def first_in_window(rows, window, ALIGN: tl.constexpr):
    """First key of the window of rows at positions `rows`: `plan.window_edge`, at least 0."""
    return tl.maximum(rows // ALIGN * ALIGN - window + 1, 0)


@triton.jit
def segment_rows(Table, n, g, size):
    """The rows of segment g of sequence n: `SegmentRows`."""
    kv_len = load_sequence(Table, n).kv_len
    offset = kv_len - load_sequence(Table, n).q_len
    start = (offset // size + g) * size
    return SegmentRows(tl.maximum(start, offset), tl.minimum(start + size, kv_len), offset)


@triton.jit
def query_pointer(Q, Table, n, h, q_strides, BY_SEQUENCE: tl.constexpr):
    """Pointer to what the rows of sequence n and head h are counted from."""
    b = n.to(tl.int64)
    if not BY_SEQUENCE:
        b = load_sequence(Table, n).batch.to(tl.int64)
    return Q + b * q_strides[0] + h.to(tl.int64) * q_strides[1]


@triton.jit
def load_rows(Q, rows, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of q `[rows, BLOCK_D]`; zero where a row is -1: there is none."""
    # [BLOCK_D]
    d = tl.arange(0, BLOCK_D)
    # [rows, BLOCK_D]
    q_ptr = Q + rows.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(q_ptr, mask=(rows >= 0)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def load_sampled(
    Q, Table, n, g, h, i, q_strides,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    SAMPLE_STRIDE: tl.constexpr,
):  # fmt: skip
    """Sampled rows `i` `[rows]` of segments g of sequence n, for heads `h`: `SampledTile`."""
    segment = segment_rows(Table, n, g, SEGMENT)
    half = SAMPLE_STRIDE // 2
    # [rows]
    p = segment.first // SEGMENT * SEGMENT + i * SAMPLE_STRIDE + half
    valid = (p >= segment.first) & (p < segment.stop)
    count = (segment.stop - half + SAMPLE_STRIDE - 1) // SAMPLE_STRIDE - (
        segment.first - half + SAMPLE_STRIDE - 1
    ) // SAMPLE_STRIDE
    # [BLOCK_D]
    d = tl.arange(0, BLOCK_D)
    # [rows]
    sequence = load_sequence(Table, n)
    offs = sequence.batch.to(tl.int64) * q_strides[0] + h.to(tl.int64) * q_strides[1]
    offs += (sequence.q_start - segment.offset + p).to(tl.int64) * q_strides[2]
    # [rows, BLOCK_D]
    mask = valid[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(Q + offs[:, None] + d[None, :], mask=mask, other=0.0)
    return SampledTile(q, p, valid, count, segment.stop)


@triton.jit
def key_pointer(K, Table, n, h, k_strides, GROUP: tl.constexpr):
    """Pointer to the first key of sequence n that head h sees."""
    sequence = load_sequence(Table, n)
    b = sequence.batch.to(tl.int64)
    start = sequence.kv_start.to(tl.int64)
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
def key_offsets(
    keys, mask, pages, page_stride, slot_stride, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr
):
    """Offsets in elements from the first key of a head to `keys`: int64 where WIDE, else int32.

    The page table is read where `mask` holds (None: everywhere); other offsets mean nothing.
    """
    if PAGE_SIZE == 0:
        if WIDE:
            keys = keys.to(tl.int64)
        offsets = keys * slot_stride
    else:
        page = tl.load(pages + keys // PAGE_SIZE, mask=mask)
        slot = keys % PAGE_SIZE
        if WIDE:
            page, slot = page.to(tl.int64), slot.to(tl.int64)
        offsets = page * page_stride + slot * slot_stride
    return offsets


@triton.jit
def load_keys(
    K, keys, mask, pages, k_strides, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Rows of K `[keys, BLOCK_D]`; zero past the head dim and, where MASKED, outside the mask."""
    # [BLOCK_D]
    d = tl.arange(0, BLOCK_D)
    valid = mask if MASKED else None
    # [keys]
    offs = key_offsets(keys, valid, pages, k_strides[0], k_strides[2], PAGE_SIZE, WIDE)
    # [keys, BLOCK_D]
    k_ptr = K + offs[:, None] + d[None, :]
    if MASKED or HEAD_DIM != BLOCK_D:
        return tl.load(k_ptr, mask=mask[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    return tl.load(k_ptr)
