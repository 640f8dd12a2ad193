"""The warps that gather: tile after tile, its description, queries, keys and values."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from .copies_kernel import WARPS, copy_queries, copy_rows, key_offset
from .handover_kernel import WHOLE, describe, following
from .merge_kernel import find_slot
from .work_kernel import find_end, find_tile, find_work, read_sequence


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
