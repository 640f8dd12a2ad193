"""How much exact rows of a segment give to the probed columns, and which classes that fills.

    bits of heavy columns ─► heavy_lse: their lists, sums over them
    ─► probe_lse: normalisers of the rows ─► probe_mass: masses of the regular probes
    ─► decide: those of heavy columns, lowest class kept, bits of the columns from there on

Regular probes are the same for all heads that share keys and, but for a few, for segments side by
side: their rows fill one tile. Which columns are heavy differs. A regular probe that is heavy
stands for itself alone: as a heavy column it weighs so much less than 1 that both together are one
column.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loop_kernel import bound
from .column_mass_kernel import FLOOR, key_pointer, load_keys, page_pointer
from .lists_kernel import close_list, flag_columns, list_columns, mass_needed
from .moments_kernel import distance_of_probes, lists_of_tile, octaves_of_probes, segment_rows

NUM_CLASSES = tl.constexpr(256)


@triton.jit
def load_sampled(
    Q, Table, n, g, h, i, q_strides,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
):  # fmt: skip
    """Sampled rows `i` of segment g for heads `h`: queries, positions, which there are, how many.

    Also where the segment's rows end. `h` and `i` are `[rows]`.
    """
    first, stop, offset = segment_rows(Table, n, g, SEGMENT)
    p = first // SEGMENT * SEGMENT + i * ROW_STRIDE + ROW_STRIDE // 2
    there = (p >= first) & (p < stop)
    half = ROW_STRIDE // 2
    rows = (stop - half + ROW_STRIDE - 1) // ROW_STRIDE - (
        first - half + ROW_STRIDE - 1
    ) // ROW_STRIDE
    d = tl.arange(0, BLOCK_D)
    at = tl.load(Table + n * 5).to(tl.int64) * q_strides[0] + h.to(tl.int64) * q_strides[1]
    at += (tl.load(Table + n * 5 + 1) - offset + p).to(tl.int64) * q_strides[2]
    mask = there[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(Q + at[:, None] + d[None, :], mask=mask, other=0.0)
    return q, p, there, rows, stop


@triton.jit
def heavy_weight(keys, step):
    """What a heavy column counts beside the regular probe that it may be."""
    return tl.where((keys + 1) % step == 0, 1 - step, 1).to(tl.float32)


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def heavy_lse_kernel(
    Q, K, Table, PageTable, Limits, Dense, Bits, HeavyCounts, Heavy, Largest, Sums, q_strides,
    k_strides, page_table_stride, pitch, num_segments, first_segment, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, ROW_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    PROBES: tl.constexpr, ROOM: tl.constexpr, WORDS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The sorted heavy columns, each sampled row's largest score on them, the sum relative to it.

    One program per segment, head and sequence. A segment with more than ROOM is dense.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = n * NUM_HEADS + h
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    if (tl.load(Dense + head * num_segments + first_segment + g) != 0) | (limit == 0):
        return
    scratch = (head * tl.num_programs(0) + g).to(tl.int64)
    Heavy += scratch * ROOM
    count = list_columns(Bits + scratch * (pitch // 32), limit, Heavy, ROOM, WORDS)
    if count > ROOM:
        tl.store(Dense + head * num_segments + first_segment + g, 1)
        return
    tl.store(HeavyCounts + scratch, count)
    tl.debug_barrier()  # what other threads of the program have written is read next
    step = distance_of_probes(limit, PROBES)
    r = tl.arange(0, ROWS)
    q, _, _, _, _ = load_sampled(
        Q, Table, n, first_segment + g, h + 0 * r, r, q_strides, HEAD_DIM, BLOCK_D, SEGMENT,
        ROW_STRIDE,
    )  # fmt: skip
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    # a running softmax of every entry of the tile: nothing is reduced before the last one
    m = tl.zeros([BLOCK_N, ROWS], tl.float32) + FLOOR
    total = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for i in range(0, bound(tl.cdiv(count, BLOCK_N))):
        slot = i * BLOCK_N + tl.arange(0, BLOCK_N)
        keys = tl.load(Heavy + slot, mask=slot < count, other=0)
        k = load_keys(
            K, keys, slot < count, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        s = tl.where((slot < count)[:, None], tl.dot(k, tl.trans(q)) * scale, float("-inf"))
        m_new = tl.maximum(m, s)
        weight = heavy_weight(keys, step)[:, None]
        total = total * tl.exp2(m - m_new) + weight * tl.exp2(s - m_new)
        m = m_new
    largest = tl.max(m, 0)
    tl.store(Largest + scratch * ROWS + r, largest)
    tl.store(Sums + scratch * ROWS + r, tl.sum(total * tl.exp2(m - largest[None, :]), 0))


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def probe_lse_kernel(
    Q, K, Table, PageTable, Limits, Dense, Largest, Sums, Shift, q_strides, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_S: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    ROW_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, PROBES: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What makes a score of a sampled row the logarithm of a share of the mean, subtracted from it.

    One program for BLOCK_S segments of HEADS heads that share keys. It is infinite where there is
    no row, and minus infinity where a sum overflows, so that masses do as well. Which segments
    share a program does not change a bit: the keys of others add zeros.
    """
    n, c = tl.program_id(2), tl.arange(0, BLOCK_S * HEADS * ROWS)
    head, segment, scratch, limit = lists_of_tile(
        Limits, Dense, c // ROWS, first_segment + tl.program_id(0) * BLOCK_S, first_segment,
        last_segment, num_segments, NUM_HEADS, GROUP, HEADS,
    )  # fmt: skip
    furthest = tl.max(limit)
    if furthest == 0:
        return
    nearest = tl.min(tl.where(limit > 0, limit, furthest))
    q, p, there, rows, stop = load_sampled(
        Q, Table, n, segment, head, c % ROWS, q_strides, HEAD_DIM, BLOCK_D, SEGMENT, ROW_STRIDE
    )
    at = scratch * ROWS + c % ROWS
    m = tl.load(Largest + at, mask=limit > 0, other=FLOOR)
    total = tl.load(Sums + at, mask=limit > 0, other=0.0)
    K = key_pointer(K, Table, n, tl.max(head), k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    lane = tl.arange(0, BLOCK_N)
    end = tl.max(tl.where(limit > 0, stop, 0))
    for j in range(bound(nearest // BLOCK_N * BLOCK_N), bound(end), BLOCK_N):
        keys = j + lane
        k = load_keys(
            K, keys, keys < end, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        near = (keys[None, :] >= limit[:, None]) & (keys[None, :] <= p[:, None])
        s = tl.where(near, tl.dot(q, tl.trans(k)), float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s * scale - m_new[:, None]), 1)
        m = m_new

    # What is left is lighter: sums relative to the same maximum do not overflow.
    steps = 1 << octaves_of_probes(limit, furthest, PROBES)
    step = distance_of_probes(nearest, PROBES)
    alike = step * PROBES >= furthest
    far = tl.zeros([BLOCK_S * HEADS * ROWS, BLOCK_N], tl.float32)
    while step <= distance_of_probes(furthest, PROBES):
        reach = tl.where(steps == step, limit, 0)
        full = tl.where(alike, nearest // step // BLOCK_N * BLOCK_N, 0)
        for t in range(0, bound(full), BLOCK_N):
            ends = (t + lane + 1) * step
            k = load_keys(
                K, ends - 1, ends > 0, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, False
            )
            far += tl.exp2(tl.dot(q, tl.trans(k)) * scale - m[:, None])
        for t in range(bound(full), bound(tl.max(reach) // step), BLOCK_N):
            ends = (t + lane + 1) * step
            k = load_keys(
                K, ends - 1, ends <= furthest, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE,
                WIDE, True,
            )  # fmt: skip
            weight = tl.exp2(tl.dot(q, tl.trans(k)) * scale - m[:, None])
            far += tl.where(ends[None, :] <= reach[:, None], weight, 0.0)
        step *= 2
    shift = m + tl.log2((total + steps * tl.sum(far, 1)) * rows)
    shift = tl.where(shift < float("inf"), shift, float("-inf"))
    tl.store(Shift + at, tl.where(there, shift, float("inf")), mask=limit > 0)


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def probe_mass_kernel(
    Q, K, Table, PageTable, Limits, Dense, Shift, Mass, q_strides, k_strides, page_table_stride,
    first_segment, last_segment, num_segments, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_S: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    ROW_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, PROBES: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Mean probability of what each regular probe stands for, over the sampled rows of a segment.

    One program for BLOCK_S segments of HEADS heads that share keys.
    """
    n, start = tl.program_id(2), first_segment + tl.program_id(0) * BLOCK_S
    c, i = tl.arange(0, BLOCK_S * HEADS * ROWS), tl.arange(0, BLOCK_S * HEADS)
    head, segment, scratch, limit = lists_of_tile(
        Limits, Dense, c // ROWS, start, first_segment, last_segment, num_segments, NUM_HEADS,
        GROUP, HEADS,
    )  # fmt: skip
    furthest = tl.max(limit)
    if furthest == 0:
        return
    q, _, _, _, _ = load_sampled(
        Q, Table, n, segment, head, c % ROWS, q_strides, HEAD_DIM, BLOCK_D, SEGMENT, ROW_STRIDE
    )
    shift = tl.load(Shift + scratch * ROWS + c % ROWS, mask=limit > 0, other=float("inf"))
    shift -= octaves_of_probes(limit, furthest, PROBES)
    step = distance_of_probes(tl.min(tl.where(limit > 0, limit, furthest)), PROBES)
    K = key_pointer(K, Table, n, tl.max(head), k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    _, _, out, limit = lists_of_tile(
        Limits, Dense, i, start, first_segment, last_segment, num_segments, NUM_HEADS, GROUP, HEADS
    )
    steps = 1 << octaves_of_probes(limit, furthest, PROBES)
    while step <= distance_of_probes(furthest, PROBES):
        reach = tl.where(steps == step, limit, 0)
        for first in range(0, bound(tl.max(reach) // step), BLOCK_N):
            t = first + tl.arange(0, BLOCK_N)
            ends = (t + 1) * step
            k = load_keys(
                K, ends - 1, ends <= furthest, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE,
                WIDE, True,
            )  # fmt: skip
            share = tl.exp2(tl.dot(k, tl.trans(q)) * scale - shift[None, :])
            mass = tl.sum(tl.reshape(share, [BLOCK_N, BLOCK_S * HEADS, ROWS]), 2)
            mask = ends[:, None] <= reach[None, :]
            tl.store(Mass + (out * PROBES)[None, :] + t[:, None], mass, mask=mask)
        step *= 2


@triton.jit
def mass_from(mass, classes, heavy_mass, heavy_classes, low):
    """Mass of regular probes and heavy columns of classes >= low."""
    regular = tl.where(classes >= low, mass, 0.0)
    return tl.sum(regular + tl.where(heavy_classes >= low, heavy_mass, 0.0))


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def decide_kernel(
    Q, K, Table, PageTable, Class, Limits, Dense, HeavyCounts, Heavy, Shift, Mass, HeavyMass, Peaks,
    Counts, Bits, q_strides, k_strides, page_table_stride, pitch, num_segments, first_segment,
    Coverage, coverage_at, dense_above, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, ROW_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    PROBES: tl.constexpr, BLOCK_P: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Bits of the columns of the fewest highest classes that hold the share of the mass, and peaks.

    One program per segment, head and sequence. A segment is dense whose mass is not finite, or that
    would keep too many columns. BLOCK_P is no less than PROBES and ROOM.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = n * NUM_HEADS + h
    entry = head * num_segments + first_segment + g
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    if (tl.load(Dense + entry) != 0) | (limit == 0):
        return
    scratch = (head * tl.num_programs(0) + g).to(tl.int64)
    Class += scratch * pitch
    Heavy += scratch * ROOM
    HeavyMass += scratch * ROOM
    count = tl.load(HeavyCounts + scratch)
    step = distance_of_probes(limit, PROBES)
    t = tl.arange(0, BLOCK_P)
    probed = t < limit // step
    mass = tl.load(Mass + scratch * PROBES + t, mask=probed, other=0.0)
    classes = tl.load(Class + (t + 1) * step - 1, mask=probed, other=0).to(tl.int32)
    r = tl.arange(0, ROWS)
    q, _, _, _, _ = load_sampled(
        Q, Table, n, first_segment + g, h + 0 * r, r, q_strides, HEAD_DIM, BLOCK_D, SEGMENT,
        ROW_STRIDE,
    )  # fmt: skip
    shift = tl.load(Shift + scratch * ROWS + r)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    for i in range(0, bound(tl.cdiv(count, BLOCK_N))):
        slot = i * BLOCK_N + tl.arange(0, BLOCK_N)
        keys = tl.load(Heavy + slot, mask=slot < count, other=0)
        k = load_keys(
            K, keys, slot < count, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        share = tl.sum(tl.exp2(tl.dot(k, tl.trans(q)) * scale - shift[None, :]), 1)
        tl.store(HeavyMass + slot, share * heavy_weight(keys, step), mask=slot < count)

    tl.debug_barrier()  # what other threads of the program have written is read next
    heavy_mass = tl.load(HeavyMass + t, mask=t < count, other=0.0)
    keys = tl.load(Heavy + t, mask=t < count, other=0)
    heavy_classes = tl.load(Class + keys, mask=t < count, other=0).to(tl.int32)
    outside = mass_from(mass, classes, heavy_mass, heavy_classes, 0)
    need = mass_needed(outside, tl.load(Coverage + h), limit, coverage_at, RESIDUAL)
    low = 0
    half = NUM_CLASSES // 2
    while half > 0:
        reached = mass_from(mass, classes, heavy_mass, heavy_classes, low + half)
        low += tl.where(reached >= need, half, 0)
        half = half // 2
    low = tl.where(need > 0, low, NUM_CLASSES)
    if tl.abs(outside) < float("inf"):
        if Peaks is not None:
            Peaks += scratch * (pitch // 16)
        kept = flag_columns(Class, Bits + scratch * (pitch // 32), Peaks, limit, pitch, low, BLOCK)
        close_list(Counts, Dense, entry, kept, limit, dense_above)
    else:
        tl.store(Dense + entry, 1)
