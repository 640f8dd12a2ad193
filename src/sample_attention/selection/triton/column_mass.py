"""Launches stage 1: normalisers of scored rows, then the mean probability of every key column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.layout import LOG2E, needs_int64, padded_dim, page_table_stride, power_of_two
from ...problem import Problem
from ..bins import LOWEST_BITS, NUM_BINS
from .column_mass_kernel import (
    column_mass_kernel,
    finite_kernel,
    mean_query_kernel,
    merge_lse_kernel,
    row_lse_kernel,
    segment_mass_kernel,
)
from .row_tables import SCORED_TOGETHER, Pools, RowTable

SEGMENT_LAUNCH = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 3}
COLUMN_LAUNCH = {"BLOCK_N": 128, "num_warps": 4, "num_stages": 3}

LSE_CHUNK = 8192
"""Keys that one program of `row_lse_kernel` goes through: few rows still fill the GPU."""

MERGED_TOGETHER = 512
"""Rows that one program of `merge_lse_kernel` finishes."""

CHUNK_KEYS = 2048
"""Keys that one program of `segment_mass_kernel` goes through."""

FINITE_TOKENS = 128
"""Tokens that one program of `mark_not_finite` looks at."""


@dataclass(frozen=True)
class Keys:
    """What rows are scored against.

    Attributes:
        k: `[B, Hkv, Skv, D]`, or pages `[P, Hkv, page_size, D]`.
        problem: describes the tensors.
        scale: multiplies q.k.
    """

    k: Tensor
    problem: Problem
    scale: float

    def constants(self) -> dict[str, int]:
        """Compile-time facts that both passes need."""
        return {
            **self.layout(), "NUM_HEADS": self.problem.num_heads,
            "GROUP": self.problem.group_size, "BLOCK_M": SCORED_TOGETHER,
        }  # fmt: skip

    def layout(self) -> dict[str, int]:
        """Compile-time facts of how the keys lie in memory."""
        return _layout(self.k, self.problem)


@dataclass(frozen=True)
class Scored:
    """Rows with their normalisers.

    Attributes:
        q: what the rows' table points into.
        table: which rows.
        lse: log2-sum-exp2 over the keys that a row sees, fp32 `[N, H, G * R]`; infinity where there
            is no row, so that it gives no key any mass.
    """

    q: Tensor
    table: RowTable
    lse: Tensor


def mean_queries(q: Tensor, pools: Pools, problem: Problem) -> Tensor:
    """Means of the rows of each pool: `[N, H, G * R, D]`."""
    sequences, count, dim = len(pools.low), pools.low[0].numel(), problem.head_dim
    means = q.new_empty(sequences, problem.num_heads, count, dim)
    launch: Any = mean_query_kernel[(count, problem.num_heads, sequences)]
    launch(
        q, pools.low, pools.high, problem.sequences.table, means, q.stride()[:3], count,
        HEAD_DIM=dim, BLOCK_D=padded_dim(dim), BLOCK_M=32, num_warps=2,
    )  # fmt: skip
    return means


def mark_not_finite(x: Tensor, problem: Problem, dense: Tensor, *, queries: bool) -> None:
    """Set `dense` `[N, H, G]` for heads whose q, or else k, holds a NaN or an infinity."""
    s = problem.sequences
    tiles = -(-(s.max_q_len if queries else s.max_kv_len) // FINITE_TOKENS)
    pages = None if queries else s.page_table
    layout = {**_layout(x, problem), "PAGE_SIZE": 0 if queries else s.page_size}
    launch: Any = finite_kernel[(tiles, x.shape[1], len(s.table))]
    launch(
        x, s.table, pages, dense.view(torch.int8), x.stride()[:3], page_table_stride(pages),
        dense.shape[2], **layout, QUERIES=queries, TOKENS=FINITE_TOKENS,
        GROUP=1 if queries else problem.group_size, num_warps=4,
    )  # fmt: skip


def score(q: Tensor, table: RowTable, keys: Keys, dense: Tensor | None = None) -> Scored:
    """The rows of a table with their normalisers.

    A normaliser that is not finite makes its segment in `dense` `[N, H, G]` dense, if given.
    """
    problem, pages, num_rows = keys.problem, keys.problem.sequences.page_table, table.at[0].numel()
    shape = len(table.at), problem.num_heads, num_rows
    tiles = -(-num_rows // SCORED_TOGETHER)
    chunks = -(-problem.sequences.max_kv_len // LSE_CHUNK)
    parts = torch.empty(chunks, *shape, dtype=torch.float32, device=q.device)
    launch: Any = row_lse_kernel[(tiles * chunks, shape[1], shape[0])]
    launch(
        q, keys.k, table.at, table.position, problem.sequences.table, pages, parts,
        q.stride()[:3], keys.k.stride()[:3], page_table_stride(pages), num_rows, tiles,
        keys.scale * LOG2E, **keys.constants(), BY_SEQUENCE=table.by_sequence, CHUNK=LSE_CHUNK,
        **lse_launch(problem.head_dim),
    )  # fmt: skip
    lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    merge: Any = merge_lse_kernel[(-(-num_rows // MERGED_TOGETHER), shape[1], shape[0])]
    merge(
        parts, table.at, lse, None if dense is None else dense.view(torch.int8), num_rows, chunks,
        ROWS=table.per_segment, BLOCK=MERGED_TOGETHER, num_warps=4,
    )  # fmt: skip
    return Scored(q, table, lse)


def lse_launch(head_dim: int) -> dict[str, int]:
    """Keys in a tile, warps, pipeline stages, and the most registers of a thread.

    With half of the registers two blocks share a multiprocessor, and the exponentials of one run
    beside the products of the other. Wide heads would spill.
    """
    launch = {"BLOCK_N": 128, "num_warps": 8, "num_stages": 2}
    return launch | {"maxnreg": 128} if head_dim <= 128 else launch


def write_mass(
    rows: Scored, keys: Keys, limits: Tensor, dense: Tensor, segments: range, *,
    mass: Tensor | None = None, bins: Tensor | None = None,
) -> None:  # fmt: skip
    """Mean probability of each key under the rows of each segment, its rank bin, or both.

    Args:
        rows: what is scored.
        keys: what it is scored against.
        limits: int32 `[N, G]`, up to which key of each segment at least is written.
        dense: bool `[N, H, G]`; these segments may be left out.
        segments: which of the G segments.
        mass: where to write means, `[N, H, len(segments), pitch]` of any float dtype.
        bins: where to write bins, uint8 `[N, H, len(segments), pitch]`.
    """
    problem, table = keys.problem, rows.table
    (n, heads, count, pitch) = (mass if mass is not None else bins).shape  # pyright: ignore[reportOptionalMemberAccess]
    pages = problem.sequences.page_table
    shared = (
        problem.sequences.table, pages, mass, bins, rows.q.stride()[:3], keys.k.stride()[:3],
        page_table_stride(pages), segments.start, segments.stop, table.at.shape[1], pitch,
        keys.scale * LOG2E,
    )  # fmt: skip
    constants = {
        **keys.constants(), "LOWEST_BITS": LOWEST_BITS, "HIGHEST_BIN": NUM_BINS - 1,
        "BY_SEQUENCE": table.by_sequence,
    }  # fmt: skip
    launch: Any
    if table.per_segment <= SCORED_TOGETHER:
        per_tile = SCORED_TOGETHER // table.per_segment
        tiles = -(-segments.stop // per_tile) - segments.start // per_tile
        launch = segment_mass_kernel[(tiles * -(-pitch // CHUNK_KEYS), heads, n)]
        launch(
            rows.q, keys.k, table.at, table.edges, rows.lse, limits, table.share,
            dense.view(torch.int8), *shared, **constants, ROWS=table.per_segment, CHUNK=CHUNK_KEYS,
            **SEGMENT_LAUNCH,
        )  # fmt: skip
    else:
        tiles = table.per_segment // SCORED_TOGETHER
        launch = column_mass_kernel[(-(-pitch // COLUMN_LAUNCH["BLOCK_N"]), heads * count, n)]
        launch(
            rows.q, keys.k, table.at, table.edges, rows.lse, table.share, *shared, tiles,
            **constants, BLOCK_TILES=power_of_two(tiles), **COLUMN_LAUNCH,
        )  # fmt: skip


def _layout(x: Tensor, problem: Problem) -> dict[str, int]:
    """Compile-time facts of how a tensor of keys lies in memory."""
    dim = problem.head_dim
    return {
        "HEAD_DIM": dim, "BLOCK_D": padded_dim(dim),
        "PAGE_SIZE": problem.sequences.page_size, "WIDE": needs_int64(problem, x),
    }  # fmt: skip
