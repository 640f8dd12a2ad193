"""How much exact rows of a segment give to the probed columns, and which classes that fills.

    bits of heavy columns ─► heavy_lse: their lists, sums over them
    ─► probe_lse: normalisers of the rows ─► probe_mass: masses of the regular probes
    ─► decide: those of heavy columns, lowest class kept, bits of the columns from there on

Regular probes and windows are the same for all heads that share keys: their rows fill one tile.
Which columns are heavy differs. A regular probe that is heavy stands for itself alone: as a heavy
column it weighs so much less than 1 that both together are one column.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .filter_kernel import close_list, flag_columns, list_columns
from .mass_kernel import FLOOR, key_pointer, load_keys, page_pointer
from .spread_kernel import distance_of_probes, heads_of_program, segment_rows

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
    for i in range(0, tl.cdiv(count, BLOCK_N)):
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


@triton.jit
def load_probes(
    K, t, step, limit, pages, k_strides,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Regular probes number `t`: which columns below the limit these are, and their keys."""
    keys = (t + 1) * step - 1
    k = load_keys(
        K, keys, keys < limit, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, MASKED
    )
    return keys < limit, k


@triton.jit
def heads_of_tile(Dense, n, g, num_segments, NUM_HEADS, GROUP: tl.constexpr, HEADS: tl.constexpr):
    """First head of the program, how many are its own, and which of HEADS are not dense."""
    head, heads = heads_of_program(GROUP, HEADS)
    i = tl.arange(0, HEADS)
    entry = (n * NUM_HEADS + head + i) * num_segments + g
    return head, heads, tl.load(Dense + entry, mask=i < heads, other=1) == 0


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def probe_lse_kernel(
    Q, K, Table, PageTable, Limits, Dense, Largest, Sums, Shift, q_strides, k_strides,
    page_table_stride, num_segments, first_segment, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr, ROW_STRIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, PROBES: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What makes a score of a sampled row the logarithm of a share of the mean, subtracted from it.

    One program for HEADS heads that share keys. It is infinite where there is no row, and minus
    infinity where a sum overflows, so that masses do as well.
    """
    g, n = tl.program_id(0), tl.program_id(2)
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    head, heads, wanted = heads_of_tile(
        Dense, n, first_segment + g, num_segments, NUM_HEADS, GROUP, HEADS
    )
    if (limit == 0) | (tl.sum(wanted.to(tl.int32)) == 0):
        return
    c = tl.arange(0, HEADS * ROWS)
    own = tl.minimum(c // ROWS, heads - 1)
    q, p, there, rows, stop = load_sampled(
        Q, Table, n, first_segment + g, head + own, c % ROWS, q_strides, HEAD_DIM, BLOCK_D, SEGMENT,
        ROW_STRIDE,
    )  # fmt: skip
    first = (n * NUM_HEADS + head).to(tl.int64) * tl.num_programs(0) + g
    at = (first + own * tl.num_programs(0)) * ROWS + c % ROWS
    m, total = tl.load(Largest + at), tl.load(Sums + at)
    K = key_pointer(K, Table, n, head, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    lane = tl.arange(0, BLOCK_N)
    for j in range(limit, stop, BLOCK_N):
        keys = j + lane
        k = load_keys(
            K, keys, keys < stop, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        s = tl.where(keys[None, :] <= p[:, None], tl.dot(q, tl.trans(k)), float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s * scale - m_new[:, None]), 1)
        m = m_new

    # What is left is lighter: sums relative to the same maximum do not overflow.
    step = distance_of_probes(limit, PROBES)
    count = limit // step
    full = count // BLOCK_N * BLOCK_N
    far = tl.zeros([HEADS * ROWS, BLOCK_N], tl.float32)
    for t in range(0, full, BLOCK_N):
        _, k = load_probes(
            K, t + lane, step, limit, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, False
        )
        far += tl.exp2(tl.dot(q, tl.trans(k)) * scale - m[:, None])
    for t in range(full, count, BLOCK_N):
        inside, k = load_probes(
            K, t + lane, step, limit, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        weight = tl.exp2(tl.dot(q, tl.trans(k)) * scale - m[:, None])
        far += tl.where(inside[None, :], weight, 0.0)
    shift = m + tl.log2((total + step * tl.sum(far, 1)) * rows)
    shift = tl.where(shift < float("inf"), shift, float("-inf"))
    tl.store(Shift + at, tl.where(there, shift, float("inf")), mask=c // ROWS < heads)


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def probe_mass_kernel(
    Q, K, Table, PageTable, Limits, Dense, Shift, Mass, q_strides, k_strides, page_table_stride,
    num_segments, first_segment, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr, ROW_STRIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, PROBES: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Mean probability of what each regular probe stands for, over the sampled rows of a segment.

    One program for HEADS heads that share keys.
    """
    g, n = tl.program_id(0), tl.program_id(2)
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    head, heads, wanted = heads_of_tile(
        Dense, n, first_segment + g, num_segments, NUM_HEADS, GROUP, HEADS
    )
    if (limit == 0) | (tl.sum(wanted.to(tl.int32)) == 0):
        return
    c = tl.arange(0, HEADS * ROWS)
    own = tl.minimum(c // ROWS, heads - 1)
    q, _, _, _, _ = load_sampled(
        Q, Table, n, first_segment + g, head + own, c % ROWS, q_strides, HEAD_DIM, BLOCK_D, SEGMENT,
        ROW_STRIDE,
    )  # fmt: skip
    first = (n * NUM_HEADS + head).to(tl.int64) * tl.num_programs(0) + g
    step = distance_of_probes(limit, PROBES)
    shift = tl.load(Shift + (first + own * tl.num_programs(0)) * ROWS + c % ROWS)
    shift -= tl.log2(step.to(tl.float32))
    K = key_pointer(K, Table, n, head, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    out = (first + tl.arange(0, HEADS) * tl.num_programs(0)) * PROBES
    for start in range(0, limit // step, BLOCK_N):
        t = start + tl.arange(0, BLOCK_N)
        inside, k = load_probes(
            K, t, step, limit, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        share = tl.exp2(tl.dot(k, tl.trans(q)) * scale - shift[None, :])
        mass = tl.sum(tl.reshape(share, [BLOCK_N, HEADS, ROWS]), 2)
        mask = inside[:, None] & wanted[None, :]
        tl.store(Mass + out[None, :] + t[:, None], mass, mask=mask)


@triton.jit
def mass_from(mass, classes, heavy_mass, heavy_classes, low):
    """Mass of regular probes and heavy columns of classes >= low."""
    regular = tl.where(classes >= low, mass, 0.0)
    return tl.sum(regular + tl.where(heavy_classes >= low, heavy_mass, 0.0))


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def decide_kernel(
    Q, K, Table, PageTable, Class, Limits, Dense, HeavyCounts, Heavy, Shift, Mass, HeavyMass,
    Counts, Bits, q_strides, k_strides, page_table_stride, pitch, num_segments, first_segment,
    coverage, dense_above, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, ROW_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    PROBES: tl.constexpr, BLOCK_P: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Bits of the columns of the fewest highest classes that hold the share of the mass.

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
    for i in range(0, tl.cdiv(count, BLOCK_N)):
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
    need = coverage - (1.0 - outside) if RESIDUAL else coverage * outside
    low = 0
    half = NUM_CLASSES // 2
    while half > 0:
        reached = mass_from(mass, classes, heavy_mass, heavy_classes, low + half)
        low += tl.where(reached >= need, half, 0)
        half = half // 2
    low = tl.where(need > 0, low, NUM_CLASSES)
    if tl.abs(outside) < float("inf"):
        kept = flag_columns(Class, Bits + scratch * (pitch // 32), limit, pitch, low, BLOCK)
        close_list(Counts, Dense, entry, kept, limit, dense_above)
    else:
        tl.store(Dense + entry, 1)
