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

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .merge_kernel import find_slot, write_run
from .softmax_kernel import FLOOR, LN2, QUAD, rescaled, softmax
from .work_kernel import TILE_ROWS, find_end, find_tile, find_work

load_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
"""Its name since triton 3.9, and before."""

WARPS = gl.constexpr(4)
"""Warps of each of the three roles: one warp group."""

HALF = gl.constexpr(64)
"""Rows of a warp group that attends."""

CHUNK = gl.constexpr(32)
"""Keys whose addresses a thread of the gathering warps holds at once."""

FIELDS = gl.constexpr(16)
"""Room for the numbers that describe a tile: see `describe`."""

WHOLE = gl.constexpr(-1)
"""In place of a slot: the tile was not split, its results go to Out and Lse."""


@gluon.jit
def get(tile, field: gl.constexpr):
    """One number of a tile's description."""
    one: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    return gl.max(tile.slice(field, 1).load(one), 0)


@gluon.jit
def describe(tile, total, shift, row, first, last, b, h, to_row, slot):
    """Write a tile's description: `total` slots of keys (0: no more tiles), and where it lies.

    `slot`: of its results in RunOut and RunLse, or WHOLE.
    """
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    field = gl.arange(0, FIELDS, layout)
    x = gl.where(field == 0, total, shift)
    x = gl.where(field == 2, row, x)
    x = gl.where(field == 3, first, x)
    x = gl.where(field == 4, last, x)
    x = gl.where(field == 5, b, x)
    x = gl.where(field == 6, h, x)
    x = gl.where(field == 7, to_row, x)
    x = gl.where(field == 8, slot, x)
    tile.store(x)


@gluon.jit
def key_offset(keys, pages, strides, PAGE_SIZE: gl.constexpr, WIDE: gl.constexpr):
    """Offsets in elements from the first key of a head to `keys`."""
    if PAGE_SIZE == 0:
        if WIDE:
            keys = keys.to(gl.int64)
        offsets = keys * strides[2]
    else:
        page, slot = gl.load(pages + keys // PAGE_SIZE), keys % PAGE_SIZE
        if WIDE:
            page, slot = page.to(gl.int64), slot.to(gl.int64)
        offsets = page * strides[0] + slot * strides[2]
    return offsets


@gluon.jit
def copy_rows(buffer, offsets, base, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr):
    """Start copies of the rows at `offsets` (in shared memory) from `base`."""
    lanes: gl.constexpr = HEAD_DIM // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [WARPS, 1], [1, 0])
    d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    for i in gl.static_range(BLOCK_N // CHUNK):
        at = offsets.slice(i * CHUNK, CHUNK).load(gl.SliceLayout(1, layout))
        source = base + gl.multiple_of(at, 8)[:, None] + d[None, :]
        load_async(buffer.slice(i * CHUNK, CHUNK), source)


@gluon.jit
def copy_queries(
    buffer, base, stride, to_row, row, first, last, HEAD_DIM: gl.constexpr, full
):  # fmt: skip
    """Start copies of the queries of a tile, zeros for rows outside `first .. last`."""
    lanes: gl.constexpr = HEAD_DIM // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [WARPS, 1], [1, 0])
    d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    for i in gl.static_range(TILE_ROWS // CHUNK):
        rows = row + i * CHUNK + gl.arange(0, CHUNK, gl.SliceLayout(1, layout))
        source = base + ((to_row + rows).to(gl.int64) * stride)[:, None] + d[None, :]
        there = (rows >= first) & (rows < last)
        load_async(buffer.slice(i * CHUNK, CHUNK), source, mask=there[:, None])
    async_copy.mbarrier_arrive(full, increment_count=False)


@gluon.jit
def gather_tiles(
    Q, K, V, Table, PageTable, Window, Indices, Offsets, Counts, Dense, RunEnds, Counter,
    q_strides, k_strides, v_strides, page_table_stride, num_tiles, num_segments, segment,
    num_sequences, num_runs, total_runs, num_work, k_at, v_at, shared,
    NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, PAGE_SIZE: gl.constexpr, WIDE: gl.constexpr,
    ALIKE: gl.constexpr, RUN: gl.constexpr,
):  # fmt: skip
    """Describe tile after tile and copy their queries, keys and values to shared memory."""
    tile, q_smem, k_smem, v_smem = shared[0], shared[1], shared[2], shared[3]
    tile_full, tile_free, q_full, q_free = shared[4], shared[5], shared[6], shared[7]
    full, free = shared[8], shared[9]
    NUM_HEADS: gl.constexpr = NUM_KV_HEADS * GROUP
    keys_of: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    u = gl.arange(0, BLOCK_N, keys_of)
    stage = 0
    phase = 1
    tile_phase = 1
    work = gl.program_id(0)
    while work < num_work:
        n, kv_head, h, t, part, run = find_work(
            work, RunEnds, num_tiles, num_runs, total_runs, num_sequences, u, NUM_KV_HEADS, GROUP,
            BLOCK_N,
        )  # fmt: skip
        b, to_row, row, first, last, entry, every, parts = find_tile(
            Table, Dense, n, h, t, num_segments, segment, NUM_HEADS, RUN
        )
        if part < parts:
            edge = gl.maximum(row - gl.load(Window + n) + 1, 0)
            edge = gl.where(every, part * RUN, edge)  # first key of the band
            stop = gl.where(parts > 1, gl.minimum(edge + RUN, last), last)
            slot = gl.where(parts > 1, find_slot(run, h, t, NUM_HEADS), WHOLE)
            list_ptr = Indices + gl.load(Offsets + entry)
            count = gl.where(every, 0, gl.load(Counts + entry))
            listed = find_end(list_ptr, count, edge, u, BLOCK_N)
            shift = edge - listed
            # Slots of the tile: listed keys and band; one, masked, where a row has no key at all.
            total = gl.maximum(stop - shift, 1)
            steps = gl.cdiv(total, BLOCK_N)

            mbarrier.wait(tile_free, tile_phase)
            describe(tile, total, shift, row, first, last, b, h, to_row, slot)
            mbarrier.arrive(tile_full)

            q_base = Q + b.to(gl.int64) * q_strides[0] + h.to(gl.int64) * q_strides[1]
            mbarrier.wait(q_free, tile_phase)
            copy_queries(q_smem, q_base, q_strides[2], to_row, row, first, last, HEAD_DIM, q_full)
            k_base = K + b.to(gl.int64) * k_strides[0] + kv_head.to(gl.int64) * k_strides[1]
            v_base = V + b.to(gl.int64) * v_strides[0] + kv_head.to(gl.int64) * v_strides[1]
            kv_start = gl.load(Table + n * 5 + 3).to(gl.int64)
            k_base += kv_start * k_strides[2]
            v_base += kv_start * v_strides[2]
            pages = PageTable
            if PAGE_SIZE > 0:  # the sequence's row; batch and first key are 0
                pages += n.to(gl.int64) * page_table_stride
            slot = (steps - 1) * BLOCK_N + u
            keys = gl.load(list_ptr + slot, mask=slot < listed, other=0)
            # Keys of a step lie beside the values of the step before, which are needed together.
            for i in range(steps + 1):
                mbarrier.wait(free.index(stage), phase)
                if i > 0:
                    copy_rows(
                        v_smem.index(stage), k_at if ALIKE else v_at, v_base, HEAD_DIM, BLOCK_N
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
                    copy_rows(k_smem.index(stage), k_at, k_base, HEAD_DIM, BLOCK_N)
                async_copy.mbarrier_arrive(full.index(stage), increment_count=False)
                stage, phase = following(stage, phase, STAGES)
            tile_phase ^= 1
        work = gl.num_programs(0) + gl.atomic_add(Counter, 1, sem="relaxed")
    mbarrier.wait(tile_free, tile_phase)
    describe(tile, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    mbarrier.arrive(tile_full)


@gluon.jit
def scores(q, k_smem, stage, BLOCK_N: gl.constexpr):
    """Start `q k'` for the keys of a stage; accumulator `[HALF, BLOCK_N]`."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    zero = gl.zeros([HALF, BLOCK_N], gl.float32, s_layout)
    return warpgroup_mma(q, k_smem.index(stage).permute([1, 0]), zero, use_acc=False, is_async=True)


@gluon.jit
def as_operand(weights, acc, v_smem):
    """Weights as the left factor of a product that adds to `acc`."""
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    return gl.convert_layout(weights.to(v_smem.dtype), p_layout, assert_trivial=True)


@gluon.jit
def fold_step(
    acc, weights, shrink, m, total, q, k_smem, v_smem, full, free, stage, phase, reach, scale,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Add `p v` while the scores of the next keys become their weights."""
    mbarrier.wait(full.index(stage), phase)
    s = scores(q, k_smem, stage, BLOCK_N)
    p = as_operand(weights, acc, v_smem)
    acc = rescaled(acc, shrink)
    acc = warpgroup_mma(p, v_smem.index(stage), acc, is_async=True)
    s = warpgroup_mma_wait(1, [s])
    weights, sums, m, shrink = softmax(s, m, reach, scale, BLOCK_N, MASKED)
    total = total * shrink + sums
    acc = warpgroup_mma_wait(0, [acc])
    mbarrier.arrive(free.index(stage))
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
    rows = gl.arange(0, HALF, gl.SliceLayout(1, layout))
    d = gl.arange(0, x.shape[1], gl.SliceLayout(0, layout))
    there = (rows >= first) & (rows < last)
    at = rows.to(gl.int64) * stride
    gl.store(out_base + at[:, None] + d[None, :], x, mask=there[:, None])
    rows = gl.arange(0, HALF, lse.type.layout)
    gl.store(lse_base + rows, lse * LN2, mask=(rows >= first) & (rows < last))


@gluon.jit
def attend_rows(
    out, shared,
    PART: gl.constexpr, NUM_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Attend from rows `64 PART ..` of tile after tile; results go to Out and Lse.

    Those of one run of the keys go to RunOut and RunLse, from the registers as they are.
    """
    Out, Lse, RunOut, RunLse = out[0], out[1], out[2], out[3]
    out_strides, lse_stride, scale = out[4], out[5], out[6]
    tile, q_smem, k_smem, v_smem = shared[0], shared[1], shared[2], shared[3]
    tile_full, tile_free, q_full, q_free = shared[4], shared[5], shared[6], shared[7]
    full, free = shared[8], shared[9]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEAD_DIM, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    quad_rows = gl.arange(0, HALF, gl.SliceLayout(1, QUAD))
    lane = gl.arange(0, 4, gl.SliceLayout(0, QUAD))
    stage = 0
    phase = 0
    tile_phase = 0
    mbarrier.wait(tile_full, tile_phase)
    slots = get(tile, 0)
    while slots > 0:
        shift, first, last = get(tile, 1), get(tile, 3), get(tile, 4)
        row = get(tile, 2) + PART * HALF
        b, h = get(tile, 5).to(gl.int64), get(tile, 6).to(gl.int64)
        to_row, slot = get(tile, 7).to(gl.int64), get(tile, 8)
        mbarrier.arrive(tile_free)
        steps = gl.cdiv(slots, BLOCK_N)
        if (steps > 1) & (shift + (steps - 1) * BLOCK_N >= row + HALF):
            # All of these keys lie right of the first half of the rows.
            mbarrier.wait(full.index(stage), phase)
            mbarrier.arrive(free.index(stage))
            stage, phase = following(stage, phase, STAGES)
            steps -= 1
        # Tiles of keys that every row sees, at most all but the last.
        open_steps = gl.minimum(gl.maximum(row + 1 - shift, 0) // BLOCK_N, steps - 1)
        reach = (row - shift - (steps - 1) * BLOCK_N) + (quad_rows[:, None] - 2 * lane[None, :])
        mbarrier.wait(q_full, tile_phase)
        q = q_smem.slice(PART * HALF, HALF)
        mbarrier.wait(full.index(stage), phase)
        s = scores(q, k_smem, stage, BLOCK_N)
        s = warpgroup_mma_wait(0, [s])
        mbarrier.arrive(free.index(stage))
        stage, phase = following(stage, phase, STAGES)
        m = gl.full([HALF, 4], FLOOR, gl.float32, QUAD)
        weights, total, m, shrink = softmax(s, m, reach, scale, BLOCK_N, True)
        acc = gl.zeros([HALF, HEAD_DIM], gl.float32, o_layout)
        for _ in range(steps - 1 - open_steps):
            reach += BLOCK_N
            acc, weights, shrink, m, total, stage, phase = fold_step(
                acc, weights, shrink, m, total, q, k_smem, v_smem, full, free, stage, phase,
                reach, scale, BLOCK_N, STAGES, True,
            )  # fmt: skip
        for _ in range(open_steps):
            acc, weights, shrink, m, total, stage, phase = fold_step(
                acc, weights, shrink, m, total, q, k_smem, v_smem, full, free, stage, phase,
                reach, scale, BLOCK_N, STAGES, False,
            )  # fmt: skip
        mbarrier.arrive(q_free)
        acc = rescaled(acc, shrink)
        mbarrier.wait(full.index(stage), phase)
        acc = warpgroup_mma(
            as_operand(weights, acc, v_smem), v_smem.index(stage), acc, is_async=True
        )
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(free.index(stage))
        stage, phase = following(stage, phase, STAGES)

        whole = gl.convert_layout(gl.sum(total, 1), s_rows, assert_trivial=True)
        top = gl.convert_layout(gl.max(m, 1), s_rows, assert_trivial=True)
        share = gl.convert_layout(gl.where(whole > 0, 1 / whole, 0.0), o_rows, assert_trivial=True)
        acc = acc * share[:, None]
        lse = top + gl.log2(whole)
        if slot == WHOLE:
            at = to_row + row
            out_base = Out + b * out_strides[0] + h * out_strides[1] + at * out_strides[2]
            lse_base = Lse + (b * NUM_HEADS + h) * lse_stride + at
            write_rows(out_base, out_strides[2], lse_base, acc, lse, first - row, last - row)
        else:
            write_run(RunOut, RunLse, slot, PART * HALF, acc, lse)
        tile_phase ^= 1
        mbarrier.wait(tile_full, tile_phase)
        slots = get(tile, 0)


@gluon.jit
def barriers(count: gl.constexpr, arrivals: gl.constexpr):
    """`count` barriers that wait for `arrivals` each."""
    made = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(made.index(i), count=arrivals)
    return made


@gluon.jit(
    do_not_specialize=[
        "lse_stride", "num_tiles", "num_segments", "segment", "num_sequences", "num_runs",
        "total_runs", "num_work",
    ]
)  # fmt: skip
def gather_attend_kernel(
    Q, K, V, Out, Lse, RunOut, RunLse, Table, PageTable, Window, Indices, Offsets, Counts,
    Dense, RunEnds, Counter,
    q_strides, k_strides, v_strides, out_strides, lse_stride, page_table_stride,
    num_tiles, num_segments, segment, num_sequences, num_runs,
    total_runs, num_work, scale,
    NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, PAGE_SIZE: gl.constexpr, WIDE: gl.constexpr,
    ALIKE: gl.constexpr, RUN: gl.constexpr, REGISTERS: gl.constexpr,
    GATHER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Tiles of 128 rows until the counter has passed the last; the counter starts at 0.

    PAGE_SIZE 0: PageTable is None and keys lie one after another. WIDE: offsets need 64 bits.
    ALIKE: k and v have the same strides. REGISTERS: of a thread that attends. RUN: keys of a run;
    a sequence has at most num_runs, a batch total_runs. See `find_work` for RunEnds and
    `write_run` for RunOut and RunLse.
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
    shared = (
        tile, q_smem, k_smem, v_smem, tile_full.index(0), tile_free.index(0), q_full.index(0),
        q_free.index(0), full, free,
    )  # fmt: skip
    out = (Out, Lse, RunOut, RunLse, out_strides, lse_stride, scale)
    heads: gl.constexpr = NUM_KV_HEADS * GROUP
    gl.warp_specialize(
        [
            (attend_rows, (out, shared, 0, heads, HEAD_DIM, BLOCK_N, STAGES)),
            (attend_rows, (out, shared, 1, heads, HEAD_DIM, BLOCK_N, STAGES)),
            (
                gather_tiles,
                (
                    Q, K, V, Table, PageTable, Window, Indices, Offsets, Counts, Dense, RunEnds,
                    Counter, q_strides, k_strides, v_strides, page_table_stride, num_tiles,
                    num_segments, segment, num_sequences, num_runs, total_runs, num_work, k_at,
                    v_at, shared,
                    NUM_KV_HEADS, GROUP, HEAD_DIM, BLOCK_N, STAGES, PAGE_SIZE, WIDE, ALIKE, RUN,
                ),
            ),
        ],
        [WARPS, WARPS],
        [REGISTERS, GATHER_REGISTERS],
    )  # fmt: skip
