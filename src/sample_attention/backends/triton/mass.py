"""Launches stage 1: normalisers of scored rows, then the mean probability of every key column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from ...problem import Problem
from ...selection.classes import LOWEST_BITS, NUM_CLASSES
from .filtering import Lists
from .layout import LOG2E, needs_int64, page_table_stride
from .mass_kernel import (
    column_mass_kernel,
    finite_kernel,
    mean_query_kernel,
    row_lse_kernel,
    segment_mass_kernel,
)
from .rows import TILE_ROWS, ScoredRows

LSE_LAUNCH = {"BLOCK_N": 128, "num_warps": 8, "num_stages": 2}
SEGMENT_LAUNCH = {"BLOCK_N": 128, "num_warps": 8, "num_stages": 3}
COLUMN_LAUNCH = {"BLOCK_N": 128, "num_warps": 4, "num_stages": 3}

CHUNK_KEYS = 2048
"""Keys that one program of `segment_mass_kernel` goes through."""

FINITE_TOKENS = 128
"""Tokens that one program of `finite_heads` looks at."""


@dataclass(frozen=True)
class Keys:
    """What the rows are scored against.

    Attributes:
        k: `[B, Hkv, Skv, D]`.
        problem: describes the tensors.
        scale: multiplies q.k.
    """

    k: Tensor
    problem: Problem
    scale: float

    def constants(self) -> dict[str, int]:
        """Compile-time facts that both passes need."""
        return {
            **_layout(self.k, self.problem), "NUM_HEADS": self.problem.num_heads,
            "GROUP": self.problem.group_size, "BLOCK_M": TILE_ROWS,
        }  # fmt: skip


def mean_of_rows(q: Tensor, low: Tensor, high: Tensor, problem: Problem) -> Tensor:
    """Means of q's rows at the positions [low, high), int32 `[N, G, R]`: `[N, H, G * R, D]`."""
    sequences, pools, dim = len(low), low[0].numel(), problem.head_dim
    means = q.new_empty(sequences, problem.num_heads, pools, dim)
    launch: Any = mean_query_kernel[(pools, problem.num_heads, sequences)]
    launch(
        q, low, high, problem.sequences.table, means, q.stride()[:3], pools,
        HEAD_DIM=dim, BLOCK_D=triton.next_power_of_2(dim), BLOCK_M=32, num_warps=2,
    )  # fmt: skip
    return means


def finite_heads(x: Tensor, problem: Problem, *, queries: bool) -> Tensor:
    """Whether each head's tokens, of q or else of k, hold finite numbers only: bool `[N, heads]`."""
    s = problem.sequences
    tiles = triton.cdiv(s.max_q_len if queries else s.max_kv_len, FINITE_TOKENS)
    shape = len(s.table), x.shape[1], tiles
    flags = torch.empty(shape, dtype=torch.bool, device=x.device)
    pages = None if queries else s.page_table
    launch: Any = finite_kernel[(tiles, shape[1], shape[0])]
    launch(
        x, s.table, pages, flags.view(torch.int8), x.stride()[:3], page_table_stride(pages),
        **{**_layout(x, problem), **({"PAGE_SIZE": 0} if queries else {})},
        FIRST=1 if queries else 3, TOKENS=FINITE_TOKENS, num_warps=4,
    )  # fmt: skip
    return flags.all(-1)


def row_lse(rows: ScoredRows, keys: Keys) -> Tensor:
    """Log2-sum-exp2 of every row over the keys it sees: fp32 `[N, H, G * R]`.

    NaN where it is not finite; infinity where there is no row, so that it gives no key any mass.
    """
    problem, num_rows = keys.problem, rows.at[0].numel()
    shape = len(rows.at), problem.num_heads, num_rows
    lse = torch.empty(shape, dtype=torch.float32, device=rows.at.device)
    launch: Any = row_lse_kernel[(triton.cdiv(num_rows, TILE_ROWS), shape[1], shape[0])]
    launch(
        rows.q, keys.k, rows.at, rows.position, problem.sequences.table,
        problem.sequences.page_table, lse, rows.q.stride()[:3], keys.k.stride()[:3],
        page_table_stride(problem.sequences.page_table), num_rows, keys.scale * LOG2E,
        **keys.constants(), BY_SEQUENCE=rows.by_sequence, **LSE_LAUNCH,
    )  # fmt: skip
    return lse


def column_mass(
    rows: ScoredRows, lse: Tensor, edges: Tensor, keys: Keys, lists: Lists, segments: range,
    out: Tensor,
) -> None:  # fmt: skip
    """Mean probability of each key under the rows of each segment, or its rank class.

    Args:
        rows: what is scored.
        lse: of `row_lse`.
        edges: int32 `[N, G, R]`, keys from here on are not counted.
        keys: what is scored against.
        lists: up to which key of each segment is written; segments dense already may be left out.
        segments: which of the G segments.
        out: where to write, `[N, H, len(segments), pitch]`: means in a float dtype, classes in
            uint8.
    """
    problem, pitch = keys.problem, out.shape[-1]
    pages = problem.sequences.page_table
    shared = (
        problem.sequences.table, pages, out, rows.q.stride()[:3], keys.k.stride()[:3],
        page_table_stride(pages), segments.start, segments.stop, rows.at.shape[1], pitch, keys.scale * LOG2E,
    )  # fmt: skip
    constants = {
        **keys.constants(), "LOWEST_BITS": LOWEST_BITS, "HIGHEST_CLASS": NUM_CLASSES - 1,
        "CLASSES": out.dtype == torch.uint8, "BY_SEQUENCE": rows.by_sequence,
    }  # fmt: skip
    launch: Any
    if rows.per_segment <= TILE_ROWS:
        per_tile = TILE_ROWS // rows.per_segment
        tiles = -(-segments.stop // per_tile) - segments.start // per_tile
        grid = tiles * triton.cdiv(pitch, CHUNK_KEYS), problem.num_heads, len(rows.at)
        launch = segment_mass_kernel[grid]
        launch(
            rows.q, keys.k, rows.at, edges, lse, lists.limits, rows.share(),
            lists.dense.view(torch.int8), *shared, **constants, ROWS=rows.per_segment,
            CHUNK=CHUNK_KEYS, **SEGMENT_LAUNCH,
        )  # fmt: skip
    else:
        tiles = rows.per_segment // TILE_ROWS
        grid = (
            triton.cdiv(pitch, COLUMN_LAUNCH["BLOCK_N"]), problem.num_heads * len(segments),
            len(rows.at),
        )  # fmt: skip
        launch = column_mass_kernel[grid]
        launch(
            rows.q, keys.k, rows.at, edges, lse, rows.share(), *shared, **constants, TILES=tiles,
            BLOCK_TILES=triton.next_power_of_2(tiles), **COLUMN_LAUNCH,
        )  # fmt: skip


def _layout(x: Tensor, problem: Problem) -> dict[str, int]:
    """Compile-time facts of how a tensor of keys lies in memory."""
    dim = problem.head_dim
    return {
        "HEAD_DIM": dim, "BLOCK_D": triton.next_power_of_2(dim),
        "PAGE_SIZE": problem.sequences.page_size, "WIDE": needs_int64(problem, x),
    }  # fmt: skip
