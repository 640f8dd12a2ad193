"""Attention over a plan's pairs on Hopper: gather, multiply and softmax in warps of their own.

Four warps gather, twice four attend: each of these owns 64 of a tile's 128 rows and starts the
scores of the next keys before it takes the softmax of the present ones. Programs stay on their
multiprocessor and fetch tiles of rows from a counter, so that keys of the next tile are on their
way while the last one is written.

    gather    tile ─► row of K, row of V, ... ─► K, V [STAGES, BLOCK_N, D] in shared memory
    attend 0  rows  0..63:   s = q k'   p = exp2(s - m)   acc += p v
    attend 1  rows 64..127:             the same, half a step apart

The keys of a tile are one sequence: its list, then the band (window and causal diagonal). Slot `u`
below `listed` is a listed key, slot `u` from there on is key `u + shift`. Listed keys lie left of
all rows, so `u + shift <= row` is the causal mask of both. Tiles of keys go from the last, which
holds the diagonal, to the first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ...kernels.lse_kernel import FLOOR
from .copies_kernel import WARPS, copy_queries, copy_rows, key_offset
from .merge_kernel import find_slot, write_split
from .softmax_kernel import LN2, QUAD, rescaled, softmax
from .work_kernel import TILE_ROWS, find_end, find_tile, find_work, read_sequence

HALF = gl.constexpr(64)
"""Rows of a warp group that attends."""

SLOTS, SHIFT, ROW, FIRST, LAST, BATCH, HEAD, TO_ROW, RESULT = map(gl.constexpr, range(9))
"""Where the numbers that describe a tile lie: see `describe`."""

FIELDS = gl.constexpr(16)
"""Room for these: a power of two."""

WHOLE = gl.constexpr(-1)
"""In place of a slot: the tile was not split, its results go to Out and Lse."""


class Shared(NamedTuple):
    """Shared memory of a program, and the barriers of those who fill and empty it.

    Attributes:
        tile: int32 `[FIELDS]`, the description of a tile.
        q: `[TILE_ROWS, HEAD_DIM]`.
        k: `[STAGES, BLOCK_N, HEAD_DIM]`.
        v: like k.
        tile_full: of `tile`; one arrival of the warps that gather.
        tile_free: one arrival of each half that attends.
        q_full: of `q`; arrivals of the threads that copied.
        q_free: like `tile_free`.
        full: of `k` and `v`, a barrier for each stage; like `q_full`.
        free: likewise; like `tile_free`.
    """

    tile: Any
    q: Any
    k: Any
    v: Any
    tile_full: Any
    tile_free: Any
    q_full: Any
    q_free: Any
    full: Any
    free: Any


class Results(NamedTuple):
    """Where results go, and the factor on scores; as in `gather_attend_kernel`."""

    out: Any
    lse: Any
    split_out: Any
    split_lse: Any
    out_strides: Any
    lse_stride: Any
    scale: Any


@gluon.jit
def get(tile, field: gl.constexpr):
    """One number of a tile's description."""
    one: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    return gl.max(tile.slice(field, 1).load(one), 0)


@gluon.jit
def describe(tile, total, shift, row, first, last, b, h, to_row, slot):
    """Write a tile's description: `total` slots of keys (0: no more tiles), and where it lies.

    `slot`: of its results in SplitOut and SplitLse, or WHOLE.
    """
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    # [FIELDS]
    field = gl.arange(0, FIELDS, layout)
    x = gl.where(field == SLOTS, total, shift)
    x = gl.where(field == ROW, row, x)
    x = gl.where(field == FIRST, first, x)
    x = gl.where(field == LAST, last, x)
    x = gl.where(field == BATCH, b, x)
    x = gl.where(field == HEAD, h, x)
    x = gl.where(field == TO_ROW, to_row, x)
    x = gl.where(field == RESULT, slot, x)
    tile.store(x)


@gluon.jit
def gather_tiles(
    Q, K, V, Table, PageTable, Window, Indices, Offsets, Counts, Dense, SplitEnds, Counter,
    q_strides, k_strides, v_strides, page_table_stride, num_tiles, num_segments, segment,
    num_sequences, num_splits, total_splits, num_work, k_at, v_at, shared,
    NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, PAGE_SIZE: gl.constexpr, WIDE: gl.constexpr,
    ALIKE: gl.constexpr, SPLIT_KEYS: gl.constexpr,
):  # fmt: skip
    """Describe tile after tile and copy their queries, keys and values to shared memory."""
    NUM_HEADS: gl.constexpr = NUM_KV_HEADS * GROUP
    keys_of: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    # [BLOCK_N]
    u = gl.arange(0, BLOCK_N, keys_of)
    stage = 0
    phase = 1
    tile_phase = 1
    work = gl.program_id(0)
    while work < num_work:
        item = find_work(
            work, SplitEnds, num_tiles, num_splits, total_splits, num_sequences, u, NUM_KV_HEADS,
            GROUP, BLOCK_N,
        )  # fmt: skip
        n, h = item.n, item.head
        rows = find_tile(
            Table, Dense, n, h, item.tile, num_segments, segment, NUM_HEADS, SPLIT_KEYS
        )
        if item.part < rows.parts:
            last = rows.last
            edge = gl.maximum(rows.row - gl.load(Window + n) + 1, 0)  # `first_in_window`
            edge = gl.where(rows.every, item.part * SPLIT_KEYS, edge)  # first key of the band
            stop = gl.where(rows.parts > 1, gl.minimum(edge + SPLIT_KEYS, last), last)
            split_slot = find_slot(item.split, h, item.tile, NUM_HEADS)
            result = gl.where(rows.parts > 1, split_slot, WHOLE)
            list_ptr = Indices + gl.load(Offsets + rows.entry)
            count = gl.where(rows.every, 0, gl.load(Counts + rows.entry))
            listed = find_end(list_ptr, count, edge, u, BLOCK_N)
            shift = edge - listed
            # Slots of the tile: listed keys and band; one, masked, where a row has no key at all.
            total = gl.maximum(stop - shift, 1)
            steps = gl.cdiv(total, BLOCK_N)

            mbarrier.wait(shared.tile_free, tile_phase)
            describe(
                shared.tile, total, shift, rows.row, rows.first, last, rows.batch, h, rows.to_row,
                result,
            )  # fmt: skip
            mbarrier.arrive(shared.tile_full)

            b = rows.batch.to(gl.int64)
            q_base = Q + b * q_strides[0] + h.to(gl.int64) * q_strides[1]
            mbarrier.wait(shared.q_free, tile_phase)
            copy_queries(
                shared.q, q_base, q_strides[2], rows.to_row, rows.row, rows.first, last, HEAD_DIM,
                shared.q_full,
            )  # fmt: skip
            kv_head = item.kv_head.to(gl.int64)
            k_base = K + b * k_strides[0] + kv_head * k_strides[1]
            v_base = V + b * v_strides[0] + kv_head * v_strides[1]
            kv_start = read_sequence(Table, n).kv_start.to(gl.int64)
            k_base += kv_start * k_strides[2]
            v_base += kv_start * v_strides[2]
            pages = PageTable
            if PAGE_SIZE > 0:  # the sequence's row; batch and first key are 0
                pages += n.to(gl.int64) * page_table_stride
            # [BLOCK_N]
            slot = (steps - 1) * BLOCK_N + u
            keys = gl.load(list_ptr + slot, mask=slot < listed, other=0)
            # Keys of a step lie beside the values of the step before, which are needed together.
            for i in range(steps + 1):
                mbarrier.wait(shared.free.index(stage), phase)
                if i > 0:
                    copy_rows(
                        shared.v.index(stage), k_at if ALIKE else v_at, v_base, HEAD_DIM, BLOCK_N
                    )
                if i < steps:
                    # Slots past the last key repeat it: the causal mask drops them.
                    band = gl.minimum(slot + shift, last - 1)
                    keys = gl.where(slot < listed, keys, band)
                    k_at.store(key_offset(keys, pages, k_strides, PAGE_SIZE, WIDE))
                    if not ALIKE:
                        v_at.store(key_offset(keys, pages, v_strides, PAGE_SIZE, WIDE))
                    slot = gl.maximum(slot - BLOCK_N, 0)
                    keys = gl.load(list_ptr + slot, mask=slot < listed, other=0)  # of the next step
                    copy_rows(shared.k.index(stage), k_at, k_base, HEAD_DIM, BLOCK_N)
                async_copy.mbarrier_arrive(shared.full.index(stage), increment_count=False)
                stage, phase = following(stage, phase, STAGES)
            tile_phase ^= 1
        work = gl.num_programs(0) + gl.atomic_add(Counter, 1, sem="relaxed")
    mbarrier.wait(shared.tile_free, tile_phase)
    describe(shared.tile, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    mbarrier.arrive(shared.tile_full)


@gluon.jit
def scores(q, shared, stage, BLOCK_N: gl.constexpr):
    """Start `q k'` for the keys of a stage; accumulator `[HALF, BLOCK_N]`."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    # [HALF, BLOCK_N], [HEAD_DIM, BLOCK_N]
    zero = gl.zeros([HALF, BLOCK_N], gl.float32, s_layout)
    k = shared.k.index(stage).permute([1, 0])
    return warpgroup_mma(q, k, zero, use_acc=False, is_async=True)


@gluon.jit
def as_operand(weights, acc, shared):
    """Weights `[HALF, BLOCK_N]` as the left factor of a product that adds to `acc`."""
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    return gl.convert_layout(weights.to(shared.v.dtype), p_layout, assert_trivial=True)


@gluon.jit
def fold_step(
    acc, weights, shrink, m, total, q, shared, stage, phase, reach, scale,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Add `p v` while the scores of the next keys become their weights."""
    mbarrier.wait(shared.full.index(stage), phase)
    # [HALF, BLOCK_N]
    s = scores(q, shared, stage, BLOCK_N)
    p = as_operand(weights, acc, shared)
    # [HALF, HEAD_DIM]
    acc = rescaled(acc, shrink)
    acc = warpgroup_mma(p, shared.v.index(stage), acc, is_async=True)
    s = warpgroup_mma_wait(1, [s])
    # [HALF, BLOCK_N], [HALF, 4], [HALF, 4], [HALF, 4]
    weights, sums, m, shrink = softmax(s, m, reach, scale, BLOCK_N, MASKED)
    total = total * shrink + sums
    acc = warpgroup_mma_wait(0, [acc])
    mbarrier.arrive(shared.free.index(stage))
    stage, phase = following(stage, phase, STAGES)
    return acc, weights, shrink, m, total, stage, phase


@gluon.jit
def following(stage, phase, STAGES: gl.constexpr):
    """The next stage, and the phase of its barriers."""
    stage += 1
    if stage == STAGES:
        stage = 0
        phase ^= 1
    return stage, phase


@gluon.jit
def write_rows(out_base, stride, lse_base, x, lse, first, last):
    """Write `x` [HALF, HEAD_DIM] and their log2-sum-exp2, for rows `first .. last` of the HALF."""
    lanes: gl.constexpr = x.shape[1] // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [WARPS, 1], [1, 0])
    x = gl.convert_layout(x.to(out_base.dtype.element_ty), layout)
    # [HALF], [HEAD_DIM]
    rows = gl.arange(0, HALF, gl.SliceLayout(1, layout))
    d = gl.arange(0, x.shape[1], gl.SliceLayout(0, layout))
    valid = (rows >= first) & (rows < last)
    offs = rows.to(gl.int64) * stride
    gl.store(out_base + offs[:, None] + d[None, :], x, mask=valid[:, None])
    rows = gl.arange(0, HALF, lse.type.layout)
    gl.store(lse_base + rows, lse * LN2, mask=(rows >= first) & (rows < last))


@gluon.jit
def attend_rows(
    results, shared,
    PART: gl.constexpr, NUM_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Attend from rows `64 PART ..` of tile after tile; results go to Out and Lse.

    Those of one split of the keys go to SplitOut and SplitLse, from the registers as they are.
    """
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEAD_DIM, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    # [HALF], [4]
    quad_rows = gl.arange(0, HALF, gl.SliceLayout(1, QUAD))
    lane = gl.arange(0, 4, gl.SliceLayout(0, QUAD))
    stage = 0
    phase = 0
    tile_phase = 0
    mbarrier.wait(shared.tile_full, tile_phase)
    slots = get(shared.tile, SLOTS)
    while slots > 0:
        shift = get(shared.tile, SHIFT)
        first, last = get(shared.tile, FIRST), get(shared.tile, LAST)
        row = get(shared.tile, ROW) + PART * HALF
        b, h = get(shared.tile, BATCH).to(gl.int64), get(shared.tile, HEAD).to(gl.int64)
        to_row, result = get(shared.tile, TO_ROW).to(gl.int64), get(shared.tile, RESULT)
        mbarrier.arrive(shared.tile_free)
        steps = gl.cdiv(slots, BLOCK_N)
        if (steps > 1) & (shift + (steps - 1) * BLOCK_N >= row + HALF):
            # All of these keys lie right of the first half of the rows.
            mbarrier.wait(shared.full.index(stage), phase)
            mbarrier.arrive(shared.free.index(stage))
            stage, phase = following(stage, phase, STAGES)
            steps -= 1
        # Tiles of keys that every row sees, at most all but the last.
        open_steps = gl.minimum(gl.maximum(row + 1 - shift, 0) // BLOCK_N, steps - 1)
        # [HALF, 4]
        reach = (row - shift - (steps - 1) * BLOCK_N) + (quad_rows[:, None] - 2 * lane[None, :])
        mbarrier.wait(shared.q_full, tile_phase)
        # [HALF, HEAD_DIM]
        q = shared.q.slice(PART * HALF, HALF)
        mbarrier.wait(shared.full.index(stage), phase)
        # [HALF, BLOCK_N]
        s = scores(q, shared, stage, BLOCK_N)
        s = warpgroup_mma_wait(0, [s])
        mbarrier.arrive(shared.free.index(stage))
        stage, phase = following(stage, phase, STAGES)
        # [HALF, 4]
        m = gl.full([HALF, 4], FLOOR, gl.float32, QUAD)
        # [HALF, BLOCK_N], [HALF, 4], [HALF, 4], [HALF, 4]
        weights, total, m, shrink = softmax(s, m, reach, results.scale, BLOCK_N, True)
        # [HALF, HEAD_DIM]
        acc = gl.zeros([HALF, HEAD_DIM], gl.float32, o_layout)
        for _ in range(steps - 1 - open_steps):
            reach += BLOCK_N
            acc, weights, shrink, m, total, stage, phase = fold_step(
                acc, weights, shrink, m, total, q, shared, stage, phase, reach, results.scale,
                BLOCK_N, STAGES, True,
            )  # fmt: skip
        for _ in range(open_steps):
            acc, weights, shrink, m, total, stage, phase = fold_step(
                acc, weights, shrink, m, total, q, shared, stage, phase, reach, results.scale,
                BLOCK_N, STAGES, False,
            )  # fmt: skip
        mbarrier.arrive(shared.q_free)
        acc = rescaled(acc, shrink)
        mbarrier.wait(shared.full.index(stage), phase)
        p = as_operand(weights, acc, shared)
        acc = warpgroup_mma(p, shared.v.index(stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(shared.free.index(stage))
        stage, phase = following(stage, phase, STAGES)

        # [HALF]
        whole = gl.convert_layout(gl.sum(total, 1), s_rows, assert_trivial=True)
        top = gl.convert_layout(gl.max(m, 1), s_rows, assert_trivial=True)
        share = gl.convert_layout(gl.where(whole > 0, 1 / whole, 0.0), o_rows, assert_trivial=True)
        acc = acc * share[:, None]
        lse = top + gl.log2(whole)
        if result == WHOLE:
            at, strides = to_row + row, results.out_strides
            out_base = results.out + b * strides[0] + h * strides[1] + at * strides[2]
            lse_base = results.lse + (b * NUM_HEADS + h) * results.lse_stride + at
            write_rows(out_base, strides[2], lse_base, acc, lse, first - row, last - row)
        else:
            write_split(results.split_out, results.split_lse, result, PART * HALF, acc, lse)
        tile_phase ^= 1
        mbarrier.wait(shared.tile_full, tile_phase)
        slots = get(shared.tile, SLOTS)


@gluon.jit
def barriers(count: gl.constexpr, arrivals: gl.constexpr):
    """`count` barriers that wait for `arrivals` each."""
    made = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(made.index(i), count=arrivals)
    return made


@gluon.jit(
    do_not_specialize=[
        "lse_stride", "num_tiles", "num_segments", "segment", "num_sequences", "num_splits",
        "total_splits", "num_work",
    ]
)  # fmt: skip
def gather_attend_kernel(
    Q, K, V, Out, Lse, SplitOut, SplitLse, Table, PageTable, Window, Indices, Offsets, Counts,
    Dense, SplitEnds, Counter,
    q_strides, k_strides, v_strides, out_strides, lse_stride, page_table_stride,
    num_tiles, num_segments, segment, num_sequences, num_splits,
    total_splits, num_work, scale,
    NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, PAGE_SIZE: gl.constexpr, WIDE: gl.constexpr,
    ALIKE: gl.constexpr, SPLIT_KEYS: gl.constexpr, REGISTERS: gl.constexpr,
    GATHER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Out `[B, H, Sq, D]` and Lse fp32 `[B, H, Sq]`: attention of rows of Q to the keys of a plan.

    Programs take tiles of 128 rows until Counter int32 `[1]`, which starts at 0, has passed the
    last. The plan is Window int32 `[N]`, Indices int32 `[capacity]`, Offsets int64, Counts int32
    and Dense int8 `[N, H, G]`.

    PAGE_SIZE 0: PageTable is None and keys lie one after another. WIDE: offsets need 64 bits.
    ALIKE: k and v have the same strides. REGISTERS: of a thread that attends. SPLIT_KEYS: keys of a
    split; a sequence has at most num_splits, a batch total_splits. See `find_work` for SplitEnds
    and `write_split` for SplitOut and SplitLse.
    """
    dtype: gl.constexpr = Q.dtype.element_ty
    tiled: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, HEAD_DIM], dtype)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    at_type: gl.constexpr = gl.int64 if WIDE else gl.int32
    q_smem = gl.allocate_shared_memory(dtype, [TILE_ROWS, HEAD_DIM], tiled)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HEAD_DIM], tiled)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HEAD_DIM], tiled)
    k_at = gl.allocate_shared_memory(at_type, [BLOCK_N], plain)
    v_at = k_at
    if not ALIKE:
        v_at = gl.allocate_shared_memory(at_type, [BLOCK_N], plain)
    tile = gl.allocate_shared_memory(gl.int32, [FIELDS], plain)
    # Copies arrive once for each thread that made them, roles once for all of their threads.
    tile_full, tile_free = barriers(1, 1), barriers(1, 2)
    q_full, q_free = barriers(1, 32 * WARPS), barriers(1, 2)
    full, free = barriers(STAGES, 32 * WARPS), barriers(STAGES, 2)
    shared = Shared(
        tile, q_smem, k_smem, v_smem, tile_full.index(0), tile_free.index(0), q_full.index(0),
        q_free.index(0), full, free,
    )  # fmt: skip
    results = Results(Out, Lse, SplitOut, SplitLse, out_strides, lse_stride, scale)
    heads: gl.constexpr = NUM_KV_HEADS * GROUP
    gl.warp_specialize(
        [
            (attend_rows, (results, shared, 0, heads, HEAD_DIM, BLOCK_N, STAGES)),
            (attend_rows, (results, shared, 1, heads, HEAD_DIM, BLOCK_N, STAGES)),
            (
                gather_tiles,
                (
                    Q, K, V, Table, PageTable, Window, Indices, Offsets, Counts, Dense, SplitEnds,
                    Counter, q_strides, k_strides, v_strides, page_table_stride, num_tiles,
                    num_segments, segment, num_sequences, num_splits, total_splits, num_work, k_at,
                    v_at, shared,
                    NUM_KV_HEADS, GROUP, HEAD_DIM, BLOCK_N, STAGES, PAGE_SIZE, WIDE, ALIKE,
                    SPLIT_KEYS,
                ),
            ),
        ],
        [WARPS, WARPS],
        [REGISTERS, GATHER_REGISTERS],
    )  # fmt: skip
