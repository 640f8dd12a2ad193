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

from .attend_rows_kernel import Results, attend_rows
from .copies_kernel import WARPS
from .gather_tiles_kernel import gather_tiles
from .handover_kernel import FIELDS, Shared, barriers
from .work_kernel import TILE_ROWS


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
