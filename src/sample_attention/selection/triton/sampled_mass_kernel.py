"""The mass that sampled rows of a segment give to the sampled keys, and the bins that hold enough.

    bits of heavy columns ─► heavy_lse: their lists, sums over them
    ─► sampled_lse: normalisers of the rows ─► sampled_mass: masses of the regular sampled keys
    ─► threshold_and_flag: those of heavy columns, lowest bin kept, bits of the columns from there

Regular sampled keys are the same for all heads that share keys and, but for a few, for segments
side by side: their rows fill one tile. Heavy columns differ. A column that is both a regular and a
heavy sampled key would count twice: its heavy entry gets weight 1 - step, so both add up to one.

N sequences, H heads, G segments, G' segments of one launch with ROWS sampled rows each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...kernels.loads_kernel import (
    key_pointer,
    load_keys,
    load_sampled,
    page_pointer,
)
from ...kernels.loop_kernel import bound
from ...kernels.lse_kernel import FLOOR, add_scores
from .lists_kernel import close_list, flag_columns, list_columns, mass_needed
from .moments_kernel import RANK_BINS
from .tile_kernel import list_tile, sampled_octaves, sampled_step


@triton.jit
def heavy_weight(keys, step):
    """The count of a heavy column beside the regular sampled key that it may be."""
    return tl.where((keys + 1) % step == 0, 1 - step, 1).to(tl.float32)


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def heavy_lse_kernel(
    Q, K, Table, PageTable, Limits, Dense, Bits, HeavyCounts, Heavy, RowMax, RowSum, q_strides,
    k_strides, page_table_stride, pitch, num_segments, first_segment, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, SAMPLE_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    SAMPLED_KEYS: tl.constexpr, ROOM: tl.constexpr, WORDS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Heavy int32 `[N, H, G', ROOM]`: sorted; RowMax, RowSum fp32 `[N, H, G', ROWS]`: over these.

    RowMax is a sampled row's largest score on them, RowSum the sum relative to it. One program per
    segment, head and sequence. A segment with more than ROOM is dense.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = n * NUM_HEADS + h
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    if (tl.load(Dense + head * num_segments + first_segment + g) != 0) | (limit == 0):
        return
    place = (head * tl.num_programs(0) + g).to(tl.int64)
    Heavy += place * ROOM
    count = list_columns(Bits + place * (pitch // 32), limit, Heavy, ROOM, WORDS)
    if count > ROOM:
        tl.store(Dense + head * num_segments + first_segment + g, 1)
        return
    tl.store(HeavyCounts + place, count)
    tl.debug_barrier()  # what other threads of the program have written is read next
    step = sampled_step(limit, SAMPLED_KEYS)
    # [ROWS]
    r = tl.arange(0, ROWS)
    # [ROWS, BLOCK_D]
    rows = load_sampled(
        Q, Table, n, first_segment + g, h + 0 * r, r, q_strides, HEAD_DIM, BLOCK_D, SEGMENT,
        SAMPLE_STRIDE,
    )  # fmt: skip
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    # a running softmax of every entry of the tile: nothing is reduced before the last one
    # [BLOCK_N, ROWS]
    m = tl.zeros([BLOCK_N, ROWS], tl.float32) + FLOOR
    total = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for i in range(0, bound(tl.cdiv(count, BLOCK_N))):
        # [BLOCK_N]
        slot = i * BLOCK_N + tl.arange(0, BLOCK_N)
        keys = tl.load(Heavy + slot, mask=slot < count, other=0)
        # [BLOCK_N, BLOCK_D]
        k = load_keys(
            K, keys, slot < count, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        # [BLOCK_N, ROWS]
        s = tl.where((slot < count)[:, None], tl.dot(k, tl.trans(rows.q)) * scale, float("-inf"))
        m_new = tl.maximum(m, s)
        weight = heavy_weight(keys, step)[:, None]
        total = total * tl.exp2(m - m_new) + weight * tl.exp2(s - m_new)
        m = m_new
    # [ROWS]
    row_max = tl.max(m, 0)
    tl.store(RowMax + place * ROWS + r, row_max)
    tl.store(RowSum + place * ROWS + r, tl.sum(total * tl.exp2(m - row_max[None, :]), 0))


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def sampled_lse_kernel(
    Q, K, Table, PageTable, Limits, Dense, RowMax, RowSum, LogNorm, q_strides, k_strides,
    page_table_stride, first_segment, last_segment, num_segments, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_S: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    SAMPLE_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    SAMPLED_KEYS: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """LogNorm fp32 `[N, H, G', ROWS]`: log2 normaliser of a sampled row plus log2 of their number.

    exp2(score - LogNorm) is the row's part of the mean. It is infinite where there is no row, and
    minus infinity where a sum overflows, so that masses do as well. One program for BLOCK_S
    segments of HEADS heads that share keys. Which segments share a program does not change a bit:
    the keys of others add zeros.
    """
    # [BLOCK_S * HEADS * ROWS]
    n, c = tl.program_id(2), tl.arange(0, BLOCK_S * HEADS * ROWS)
    lists = list_tile(
        Limits, Dense, c // ROWS, first_segment + tl.program_id(0) * BLOCK_S, first_segment,
        last_segment, num_segments, NUM_HEADS, GROUP, HEADS,
    )  # fmt: skip
    limit = lists.limit
    furthest = tl.max(limit)
    if furthest == 0:
        return
    nearest = tl.min(tl.where(limit > 0, limit, furthest))
    # [BLOCK_S * HEADS * ROWS, BLOCK_D]
    rows = load_sampled(
        Q, Table, n, lists.segment, lists.head, c % ROWS, q_strides, HEAD_DIM, BLOCK_D, SEGMENT,
        SAMPLE_STRIDE,
    )  # fmt: skip
    # [BLOCK_S * HEADS * ROWS]
    offs = lists.place * ROWS + c % ROWS
    m = tl.load(RowMax + offs, mask=limit > 0, other=FLOOR)
    total = tl.load(RowSum + offs, mask=limit > 0, other=0.0)
    K = key_pointer(K, Table, n, tl.max(lists.head), k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    # [BLOCK_N]
    lane = tl.arange(0, BLOCK_N)
    end = tl.max(tl.where(limit > 0, rows.stop, 0))
    for j in range(bound(nearest // BLOCK_N * BLOCK_N), bound(end), BLOCK_N):
        # [BLOCK_N]
        keys = j + lane
        # [BLOCK_N, BLOCK_D]
        k = load_keys(
            K, keys, keys < end, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        # [BLOCK_S * HEADS * ROWS, BLOCK_N]
        in_window = (keys[None, :] >= limit[:, None]) & (keys[None, :] <= rows.position[:, None])
        s = tl.where(in_window, tl.dot(rows.q, tl.trans(k)), float("-inf"))
        m, total = add_scores(m, total, s, scale)

    # Other columns are lighter: sums relative to the same maximum do not overflow.
    # [BLOCK_S * HEADS * ROWS]
    steps = 1 << sampled_octaves(limit, furthest, SAMPLED_KEYS)
    step = sampled_step(nearest, SAMPLED_KEYS)
    one_step = step * SAMPLED_KEYS >= furthest
    # [BLOCK_S * HEADS * ROWS, BLOCK_N]
    outside = tl.zeros([BLOCK_S * HEADS * ROWS, BLOCK_N], tl.float32)
    while step <= sampled_step(furthest, SAMPLED_KEYS):
        # [BLOCK_S * HEADS * ROWS]
        sampled_to = tl.where(steps == step, limit, 0)
        open_to = tl.where(one_step, nearest // step // BLOCK_N * BLOCK_N, 0)
        for t in range(0, bound(open_to), BLOCK_N):
            # [BLOCK_N]
            ends = (t + lane + 1) * step
            # [BLOCK_N, BLOCK_D]
            k = load_keys(
                K, ends - 1, ends > 0, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, False
            )
            # [BLOCK_S * HEADS * ROWS, BLOCK_N]
            outside += tl.exp2(tl.dot(rows.q, tl.trans(k)) * scale - m[:, None])
        for t in range(bound(open_to), bound(tl.max(sampled_to) // step), BLOCK_N):
            # [BLOCK_N]
            ends = (t + lane + 1) * step
            # [BLOCK_N, BLOCK_D]
            k = load_keys(
                K, ends - 1, ends <= furthest, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE,
                WIDE, True,
            )  # fmt: skip
            # [BLOCK_S * HEADS * ROWS, BLOCK_N]
            weight = tl.exp2(tl.dot(rows.q, tl.trans(k)) * scale - m[:, None])
            outside += tl.where(ends[None, :] <= sampled_to[:, None], weight, 0.0)
        step *= 2
    # [BLOCK_S * HEADS * ROWS]
    log_norm = m + tl.log2((total + steps * tl.sum(outside, 1)) * rows.count)
    log_norm = tl.where(log_norm < float("inf"), log_norm, float("-inf"))
    tl.store(LogNorm + offs, tl.where(rows.valid, log_norm, float("inf")), mask=limit > 0)


@triton.jit(do_not_specialize=["first_segment", "last_segment", "num_segments"])
def sampled_mass_kernel(
    Q, K, Table, PageTable, Limits, Dense, LogNorm, Mass, q_strides, k_strides, page_table_stride,
    first_segment, last_segment, num_segments, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_S: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SEGMENT: tl.constexpr,
    SAMPLE_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    SAMPLED_KEYS: tl.constexpr, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Mass fp32 `[N, H, G', SAMPLED_KEYS]`: mean probability that a regular sampled key stands for.

    One program for BLOCK_S segments of HEADS heads that share keys.
    """
    n, start = tl.program_id(2), first_segment + tl.program_id(0) * BLOCK_S
    # [BLOCK_S * HEADS * ROWS], [BLOCK_S * HEADS]
    c, i = tl.arange(0, BLOCK_S * HEADS * ROWS), tl.arange(0, BLOCK_S * HEADS)
    of_rows = list_tile(
        Limits, Dense, c // ROWS, start, first_segment, last_segment, num_segments, NUM_HEADS,
        GROUP, HEADS,
    )  # fmt: skip
    limit = of_rows.limit
    furthest = tl.max(limit)
    if furthest == 0:
        return
    # [BLOCK_S * HEADS * ROWS, BLOCK_D]
    rows = load_sampled(
        Q, Table, n, of_rows.segment, of_rows.head, c % ROWS, q_strides, HEAD_DIM, BLOCK_D, SEGMENT,
        SAMPLE_STRIDE,
    )  # fmt: skip
    # [BLOCK_S * HEADS * ROWS]
    offs = of_rows.place * ROWS + c % ROWS
    log_norm = tl.load(LogNorm + offs, mask=limit > 0, other=float("inf"))
    log_norm -= sampled_octaves(limit, furthest, SAMPLED_KEYS)
    step = sampled_step(tl.min(tl.where(limit > 0, limit, furthest)), SAMPLED_KEYS)
    K = key_pointer(K, Table, n, tl.max(of_rows.head), k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    # [BLOCK_S * HEADS]
    lists = list_tile(
        Limits, Dense, i, start, first_segment, last_segment, num_segments, NUM_HEADS, GROUP, HEADS
    )
    steps = 1 << sampled_octaves(lists.limit, furthest, SAMPLED_KEYS)
    while step <= sampled_step(furthest, SAMPLED_KEYS):
        # [BLOCK_S * HEADS]
        sampled_to = tl.where(steps == step, lists.limit, 0)
        for first in range(0, bound(tl.max(sampled_to) // step), BLOCK_N):
            # [BLOCK_N]
            t = first + tl.arange(0, BLOCK_N)
            ends = (t + 1) * step
            # [BLOCK_N, BLOCK_D]
            k = load_keys(
                K, ends - 1, ends <= furthest, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE,
                WIDE, True,
            )  # fmt: skip
            # [BLOCK_N, BLOCK_S * HEADS * ROWS]
            share = tl.exp2(tl.dot(k, tl.trans(rows.q)) * scale - log_norm[None, :])
            # [BLOCK_N, BLOCK_S * HEADS]
            mass = tl.sum(tl.reshape(share, [BLOCK_N, BLOCK_S * HEADS, ROWS]), 2)
            mask = ends[:, None] <= sampled_to[None, :]
            tl.store(Mass + (lists.place * SAMPLED_KEYS)[None, :] + t[:, None], mass, mask=mask)
        step *= 2


@triton.jit
def mass_from(mass, bins, heavy_mass, heavy_bins, low):
    """Mass of regular sampled keys and heavy columns of bins >= low; all `[BLOCK_P]`."""
    # [BLOCK_P]
    regular = tl.where(bins >= low, mass, 0.0)
    return tl.sum(regular + tl.where(heavy_bins >= low, heavy_mass, 0.0))


@triton.jit(do_not_specialize=["num_segments", "first_segment"])
def threshold_and_flag_kernel(
    Q, K, Table, PageTable, Bins, Limits, Dense, HeavyCounts, Heavy, LogNorm, Mass, HeavyMass,
    Peaks, Counts, Bits, q_strides, k_strides, page_table_stride, pitch, num_segments,
    first_segment, Coverage, tighten_below, dense_above, scale,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr, SAMPLE_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    SAMPLED_KEYS: tl.constexpr, BLOCK_P: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Bits int32 `[N, H, G', pitch / 32]` of the fewest highest bins with the share, and of peaks.

    Counts int32 `[N, H, G]` has how many. One program per segment, head and sequence. A segment is
    dense whose mass is not finite, or that would keep too many columns. BLOCK_P is no less than
    SAMPLED_KEYS and ROOM.
    """
    g, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = n * NUM_HEADS + h
    entry = head * num_segments + first_segment + g
    limit = tl.load(Limits + n * num_segments + first_segment + g)
    if (tl.load(Dense + entry) != 0) | (limit == 0):
        return
    place = (head * tl.num_programs(0) + g).to(tl.int64)
    Bins += place * pitch
    Heavy += place * ROOM
    HeavyMass += place * ROOM
    count = tl.load(HeavyCounts + place)
    step = sampled_step(limit, SAMPLED_KEYS)
    # [BLOCK_P]
    t = tl.arange(0, BLOCK_P)
    sampled = t < limit // step
    mass = tl.load(Mass + place * SAMPLED_KEYS + t, mask=sampled, other=0.0)
    bins = tl.load(Bins + (t + 1) * step - 1, mask=sampled, other=0).to(tl.int32)
    # [ROWS]
    r = tl.arange(0, ROWS)
    # [ROWS, BLOCK_D]
    rows = load_sampled(
        Q, Table, n, first_segment + g, h + 0 * r, r, q_strides, HEAD_DIM, BLOCK_D, SEGMENT,
        SAMPLE_STRIDE,
    )  # fmt: skip
    # [ROWS]
    log_norm = tl.load(LogNorm + place * ROWS + r)
    K = key_pointer(K, Table, n, h, k_strides, GROUP)
    pages = page_pointer(PageTable, n, page_table_stride, PAGE_SIZE)
    for i in range(0, bound(tl.cdiv(count, BLOCK_N))):
        # [BLOCK_N]
        slot = i * BLOCK_N + tl.arange(0, BLOCK_N)
        keys = tl.load(Heavy + slot, mask=slot < count, other=0)
        # [BLOCK_N, BLOCK_D]
        k = load_keys(
            K, keys, slot < count, pages, k_strides, HEAD_DIM, BLOCK_D, PAGE_SIZE, WIDE, True
        )
        # [BLOCK_N]
        share = tl.sum(tl.exp2(tl.dot(k, tl.trans(rows.q)) * scale - log_norm[None, :]), 1)
        tl.store(HeavyMass + slot, share * heavy_weight(keys, step), mask=slot < count)

    tl.debug_barrier()  # what other threads of the program have written is read next
    # [BLOCK_P]
    heavy_mass = tl.load(HeavyMass + t, mask=t < count, other=0.0)
    keys = tl.load(Heavy + t, mask=t < count, other=0)
    heavy_bins = tl.load(Bins + keys, mask=t < count, other=0).to(tl.int32)
    outside = mass_from(mass, bins, heavy_mass, heavy_bins, 0)
    need = mass_needed(outside, tl.load(Coverage + h), limit, tighten_below)
    low = 0
    half = RANK_BINS // 2
    while half > 0:
        reached = mass_from(mass, bins, heavy_mass, heavy_bins, low + half)
        low += tl.where(reached >= need, half, 0)
        half = half // 2
    low = tl.where(need > 0, low, RANK_BINS)
    if tl.abs(outside) < float("inf"):
        if Peaks is not None:
            Peaks += place * (pitch // 16)
        count = flag_columns(Bins, Bits + place * (pitch // 32), Peaks, limit, pitch, low, BLOCK)
        close_list(Counts, Dense, entry, count, limit, dense_above)
    else:
        tl.store(Dense + entry, 1)
