"""Launches the search for peaks: columns that outlier rows of a segment need."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...config import PEAK, SampleAttentionConfig
from .counting import Ranked
from .filtering import Lists
from .layout import LOG2E, padded_dim, page_table_stride, power_of_two
from .mass import Keys
from .outlier_kernel import outlier_kernel, outlier_score_kernel, peak_kernel

OUTLIER_LAUNCH = {"num_warps": 8}
SCORE_LAUNCH = {"num_warps": 8, "num_stages": 3}
PEAK_LAUNCH = {"LANES": 64, "num_warps": 4, "num_stages": 1}

BLOCK_N = 128
"""Columns of a block, of whose scores the largest is written."""

BLOCKS = 16
"""Blocks that one program scores."""

TILE_ROWS = 128
"""Outlier rows, of segments side by side, that one program scores; half where heads are wide."""


def bytes_per_column(outliers: int) -> float:
    """Scratch memory for a column of a segment, about."""
    return 4 * power_of_two(outliers) / BLOCK_N if outliers else 0.0


def tile(outliers: int, head_dim: int) -> dict[str, int]:
    """Outlier rows of a segment, padded, and segments whose rows are scored at once."""
    count, rows = power_of_two(outliers), TILE_ROWS if head_dim <= 128 else TILE_ROWS // 2
    return {"COUNT": count, "BLOCK_S": rows // count}


def choose_outliers(q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists) -> Tensor:
    """Numbers of the rows of each segment least like its others: int32 `[N, H, G, outliers]`."""
    problem, (n, heads, segments) = keys.problem, lists.counts.shape
    size, dim = lists.geometry.size, problem.head_dim
    rows = lists.counts.new_empty(n, heads, segments, config.outliers)
    launch: Any = outlier_kernel[(segments, heads, n)]
    launch(
        q, problem.sequences.table, lists.dense.view(torch.int8), rows, q.stride()[:3], segments,
        HEAD_DIM=dim, BLOCK_D=padded_dim(dim), SEGMENT=size, BLOCK_M=max(16, power_of_two(size)),
        OUTLIERS=config.outliers, **OUTLIER_LAUNCH,
    )  # fmt: skip
    return rows


def mark_peaks(q: Tensor, keys: Keys, outliers: Tensor, lists: Lists, ranked: Ranked) -> None:
    """Give the peaks of the rows of `outliers` the highest class, and a bit as heavy ones have."""
    problem, facts, segments = keys.problem, lists.geometry, ranked.segments
    pages, dense = problem.sequences.page_table, lists.dense.view(torch.int8)
    n, heads, count, pitch = ranked.classes.shape
    of_tile, blocks = tile(outliers.shape[-1], problem.head_dim), -(-pitch // BLOCK_N)
    chunks = -(-blocks // BLOCKS)
    largest = q.new_empty(n, heads, count, blocks, of_tile["COUNT"], dtype=torch.float32)
    sums = q.new_empty(n, heads, count, chunks, of_tile["COUNT"], dtype=torch.float32)
    head = q, keys.k, outliers, facts.limits, dense, problem.sequences.table, pages, largest, sums
    strides = q.stride()[:3], keys.k.stride()[:3], page_table_stride(pages)
    constants = {
        **keys.layout(), "NUM_HEADS": heads, "GROUP": problem.group_size, "SEGMENT": facts.size,
        "OUTLIERS": outliers.shape[-1], "BLOCK_N": BLOCK_N, "BLOCKS": BLOCKS,
    }  # fmt: skip
    tiles = -(-count // of_tile["BLOCK_S"])
    scores: Any = outlier_score_kernel[(tiles * chunks, heads, n)]
    scores(
        *head, *strides, segments.start, segments.stop, facts.segments, blocks, keys.scale * LOG2E,
        **constants, **of_tile, **SCORE_LAUNCH,
    )  # fmt: skip
    peaks: Any = peak_kernel[(count, heads, n)]
    peaks(
        *head, ranked.classes, ranked.bits, *strides, pitch, segments.start, facts.segments, blocks,
        keys.scale * LOG2E, **constants, COUNT=of_tile["COUNT"], ROWS=max(16, of_tile["COUNT"]),
        OCTAVES=int(math.log2(PEAK)), **PEAK_LAUNCH,
    )  # fmt: skip
