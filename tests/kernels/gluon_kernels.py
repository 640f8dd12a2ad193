"""Small Gluon kernels for tests of the emulator, some of which can be broken by a constant."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

load_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
"""Its name since triton 3.9, and before."""
thread_barrier = getattr(gl, "barrier", None) or gl.thread_barrier
"""Its name since triton 3.7, and before."""


@gluon.jit
def copy_kernel(X, Y, n, ahead, BLOCK: gl.constexpr, MASKED: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    at = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, layout=layout)
    if MASKED:
        gl.store(Y + at, gl.load(X + at + ahead, mask=at + ahead < n, other=0.0), mask=at < n)
    else:
        gl.store(Y + at, gl.load(X + at + ahead))


@gluon.jit
def larger(a, b):
    return gl.maximum(a, b)


@gluon.jit
def fold_kernel(X, Out, by, L: gl.constexpr):
    """Quotients, remainders, the largest and the smallest of 4 integers."""
    at = gl.arange(0, 4, layout=L)
    x = gl.load(X + at)
    gl.store(Out + at, x // by)
    gl.store(Out + 4 + at, x % by)
    gl.store(Out + 8 + at, gl.zeros_like(x) + gl.reduce(x, 0, larger))
    gl.store(Out + 12 + at, gl.full([4], 0, gl.int32, L) + min(gl.sum(x, 0), 9))


@gluon.jit
def copy_group_kernel(X, Y, n, WAIT: gl.constexpr, COUNTED: gl.constexpr, L: gl.constexpr):
    """Copy through shared memory, and wait for it in one of several ways, some of them wrong."""
    at = gl.arange(0, 128, layout=L)
    shared = gl.allocate_shared_memory(gl.float32, [128], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(bar, count=1)
    load_async(shared, X + at, mask=at < n)
    if WAIT == "early":
        async_copy.wait_group(0)
        async_copy.commit_group()
    elif WAIT == "group":
        async_copy.commit_group()
        async_copy.wait_group(0)
    elif WAIT != "none":
        async_copy.mbarrier_arrive(bar, increment_count=COUNTED)
        if WAIT == "barrier":
            mbarrier.arrive(bar, count=1)
        mbarrier.wait(bar, 0)
    thread_barrier()
    gl.store(Y + at, shared.load(L))


@gluon.jit
def scheduled_kernel(Next, Taken, tiles):
    """Programs take tiles from a counter until there are none."""
    tile = gl.atomic_add(Next, 1)
    while tile < tiles:
        gl.atomic_add(Taken + tile, 1)
        tile = gl.atomic_add(Next, 1)


@gluon.jit
def take(X, at):
    gl.store(X + at, 1.0)


@gluon.jit
def worker_tensor_kernel(X, L: gl.constexpr):
    gl.warp_specialize([(take, (X, 0)), (take, (X, gl.arange(0, 128, layout=L)))], [4], [24])


@gluon.jit
def strided(X, strides, row, Absent):
    if Absent is None:
        layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
        x = gl.load(X + row * strides[0] + gl.arange(0, 32, layout=layout) * strides[1])
    return x


@gluon.jit
def move_kernel(X, Out, strides, Absent):
    """Half the sum of a row of 16-bit integers, in another type."""
    row = gl.program_id(0)
    gl.static_assert(X.dtype.element_ty == gl.int16)
    total = gl.sum(strided(X, strides, row, Absent), 0)
    gl.store(Out + row, (total / 2).to(Out.dtype.element_ty))


@gluon.jit
def load_rows(
    X, Rows, buffers, full, empty, n, stride,
    BLOCK_N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, FAULT: gl.constexpr,
):  # fmt: skip
    """Loader: rows of X by index, tile after tile."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    d = gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    slots = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, layout))
    for t in range(gl.cdiv(n, BLOCK_N)):
        stage = t % STAGES
        phase = t // STAGES & 1
        there = t * BLOCK_N + slots < n
        rows = gl.load(Rows + t * BLOCK_N + slots, mask=there, other=0)
        if FAULT != "loader does not wait":
            mbarrier.wait(empty.index(stage), phase ^ (FAULT != "wrong phase"))
        pointers = X + rows[:, None] * stride + d[None, :]
        if FAULT == "rows are not masked":
            load_async(buffers.index(stage), pointers)
        else:
            load_async(buffers.index(stage), pointers, mask=there[:, None])
        async_copy.mbarrier_arrive(full.index(stage), increment_count=False)


@gluon.jit
def sum_tiles(
    weights, buffers, full, empty, n,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    FAULT: gl.constexpr,
):  # fmt: skip
    """Consumer: weights `[BLOCK_M, BLOCK_N]` times every tile, with one product in flight."""
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, D, 16])
    acc = gl.zeros([BLOCK_M, D], gl.float32, out_layout)
    tiles = gl.cdiv(n, BLOCK_N)
    for t in range(tiles):
        stage = t % STAGES
        if FAULT != "consumer does not wait":
            mbarrier.wait(full.index(stage), t // STAGES & 1)
        acc = warpgroup_mma(weights, buffers.index(stage), acc, is_async=True)
        if FAULT == "buffer freed early":
            mbarrier.arrive(empty.index(stage), count=1)
        acc = warpgroup_mma_wait(0, [acc])
        if FAULT != "buffer freed early":
            mbarrier.arrive(empty.index(stage), count=1)
    return (acc,)


@gluon.jit
def gather_kernel(
    W, X, Rows, Out, n, stride,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    LOADER_WARPS: gl.constexpr, FAULT: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """Out `[BLOCK_M, D]` = the sum over tiles of W `[BLOCK_M, BLOCK_N]` @ X[rows of the tile]."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [num_warps, 1], [1, 0])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, D, 16])
    m = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, layout))
    j = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, layout))
    weights = gl.allocate_shared_memory(
        gl.bfloat16,
        [BLOCK_M, BLOCK_N],
        gl.NVMMASharedLayout.get_default_for([BLOCK_M, BLOCK_N], gl.bfloat16),
        gl.load(W + m[:, None] * BLOCK_N + j[None, :]),
    )
    buffers = gl.allocate_shared_memory(
        gl.bfloat16,
        [STAGES, BLOCK_N, D],
        gl.NVMMASharedLayout.get_default_for([BLOCK_N, D], gl.bfloat16),
    )
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1 if FAULT == "one arrival" else 32 * LOADER_WARPS)
        mbarrier.init(empty.index(i), count=1)
    if FAULT != "no fence":
        fence_async_shared()
    (acc,) = gl.warp_specialize(
        [
            (sum_tiles, (weights, buffers, full, empty, n, BLOCK_M, BLOCK_N, D, STAGES, FAULT)),
            (load_rows, (X, Rows, buffers, full, empty, n, stride, BLOCK_N, D, STAGES, FAULT)),
        ],
        [LOADER_WARPS],
        [40],
    )
    rows = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, out_layout))
    d = gl.arange(0, D, layout=gl.SliceLayout(0, out_layout))
    gl.store(Out + rows[:, None] * D + d[None, :], acc)


@gluon.jit
def load_keys(
    K, V, k_tiles, v_tiles, full_k, full_v, empty, kv_len, stride,
    BLOCK_N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    d = gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    slots = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, layout))
    for t in range(gl.cdiv(kv_len, BLOCK_N)):
        stage = t % STAGES
        keys = t * BLOCK_N + slots
        at = keys[:, None] * stride + d[None, :]
        there = (keys < kv_len)[:, None]
        mbarrier.wait(empty.index(stage), t // STAGES & 1 ^ 1)
        load_async(k_tiles.index(stage), K + at, mask=there)
        async_copy.mbarrier_arrive(full_k.index(stage), increment_count=False)
        load_async(v_tiles.index(stage), V + at, mask=there)
        async_copy.mbarrier_arrive(full_v.index(stage), increment_count=False)


@gluon.jit
def fold_keys(
    q_tile, k_tiles, v_tiles, full_k, full_v, empty, Out, row, q_len, kv_len, stride, scale,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Causal attention of BLOCK_M rows from `row` on, which stand at the end of the keys."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [gl.num_warps(), 1], [16, BLOCK_N, 16]
    )
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, D, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    out_rows: gl.constexpr = gl.SliceLayout(1, out_layout)
    acc = gl.zeros([BLOCK_M, D], gl.float32, out_layout)
    m = gl.full([BLOCK_M], -1.0e30, gl.float32, s_rows)
    total = gl.zeros([BLOCK_M], gl.float32, s_rows)
    position = kv_len - q_len + row + gl.arange(0, BLOCK_M, layout=s_rows)
    slots = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, s_layout))
    for t in range(gl.cdiv(kv_len, BLOCK_N)):
        stage = t % STAGES
        phase = t // STAGES & 1
        mbarrier.wait(full_k.index(stage), phase)
        fence_async_shared()
        s = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, s_layout)
        k = k_tiles.index(stage).permute([1, 0])
        s = warpgroup_mma(q_tile, k, s, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, [s])
        keys = t * BLOCK_N + slots
        keep = (keys[None, :] <= position[:, None]) & (keys < kv_len)[None, :]
        s = gl.where(keep, s * scale, float("-inf"))
        m_new = gl.maximum(m, gl.max(s, 1))
        p = gl.exp2(s - m_new[:, None])
        shrink = gl.exp2(m - m_new)
        total = total * shrink + gl.sum(p, 1)
        m = m_new
        acc = acc * gl.convert_layout(shrink, out_rows, assert_trivial=True)[:, None]
        p = gl.convert_layout(
            p.to(gl.bfloat16), gl.DotOperandLayout(0, out_layout, 2), assert_trivial=True
        )
        mbarrier.wait(full_v.index(stage), phase)
        fence_async_shared()
        acc = warpgroup_mma(p, v_tiles.index(stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(empty.index(stage), count=1)
    acc = acc / gl.convert_layout(total, out_rows, assert_trivial=True)[:, None]
    rows = row + gl.arange(0, BLOCK_M, layout=out_rows)
    d = gl.arange(0, D, layout=gl.SliceLayout(0, out_layout))
    gl.store(
        Out + rows[:, None] * stride + d[None, :],
        acc.to(gl.bfloat16),
        mask=(rows < q_len)[:, None],
    )


@gluon.jit
def attention_kernel(
    Q, K, V, Out, q_strides, k_strides, q_len, kv_len, scale,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    num_warps: gl.constexpr,
):  # fmt: skip
    """Two consumers of BLOCK_M rows each and a loader: 2 × BLOCK_M rows of one head."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [num_warps, 1], [1, 0])
    q_shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, D], gl.bfloat16)
    k_shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, D], gl.bfloat16)
    Q += gl.program_id(1) * q_strides[0]
    Out += gl.program_id(1) * q_strides[0]
    K += gl.program_id(1) * k_strides[0]
    V += gl.program_id(1) * k_strides[0]
    row = gl.program_id(0) * (2 * BLOCK_M)
    q_tiles = gl.allocate_shared_memory(gl.bfloat16, [2, BLOCK_M, D], q_shared)
    d = gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    for i in gl.static_range(2):
        rows = row + i * BLOCK_M + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, layout))
        there = (rows < q_len)[:, None]
        q_at = Q + rows[:, None] * q_strides[1] + d[None, :]
        q_tiles.index(i).store(gl.load(q_at, mask=there, other=0.0))
    k_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK_N, D], k_shared)
    v_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK_N, D], k_shared)
    full_k = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    full_v = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full_k.index(i), count=32 * 4)
        mbarrier.init(full_v.index(i), count=32 * 4)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (fold_keys, (
                q_tiles.index(0), k_tiles, v_tiles, full_k, full_v, empty, Out, row, q_len, kv_len,
                q_strides[1], scale, BLOCK_M, BLOCK_N, D, STAGES,
            )),
            (fold_keys, (
                q_tiles.index(1), k_tiles, v_tiles, full_k, full_v, empty, Out, row + BLOCK_M,
                q_len, kv_len, q_strides[1], scale, BLOCK_M, BLOCK_N, D, STAGES,
            )),
            (load_keys, (
                K, V, k_tiles, v_tiles, full_k, full_v, empty, kv_len, k_strides[1], BLOCK_N, D,
                STAGES,
            )),
        ],
        [4, 4],
        [168, 40],
    )  # fmt: skip
