"""Launches the search for peaks: columns that single rows of a segment need."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...config import PEAK, SampleAttentionConfig
from ...kernels.layout import LOG2E, page_table_stride, power_of_two
from .column_mass import Keys
from .lists import Lists
from .peaks_kernel import farthest_rows_kernel, peak_kernel

PEAK_LAUNCH = {"BLOCK_N": 64, "CHUNK": 2048, "num_warps": 4, "num_stages": 2}

ROWS_OF_WARP = 32
"""Sampled rows among which one warp chooses; it reduces within itself, and waits for no other."""

FARTHEST_TOGETHER = 128
"""Outlier rows, of segments side by side, that one program scores; half where heads are wide."""


def farthest_launch(rows: int) -> dict[str, int]:
    """Options for choosing among that many sampled rows."""
    return {"num_warps": max(1, rows // ROWS_OF_WARP)}


def peak_tile(outliers: int, head_dim: int) -> dict[str, int]:
    """Outlier rows of a segment, padded, segments that are scored at once, and what a peak is."""
    count, rows = (
        power_of_two(outliers),
        FARTHEST_TOGETHER if head_dim <= 128 else FARTHEST_TOGETHER // 2,
    )
    return {"COUNT": count, "BLOCK_S": rows // count, "OCTAVES": int(math.log2(PEAK))}


def find_peaks(
    q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists, segments: range, pitch: int,
    log_norm: Tensor,
) -> Tensor:  # fmt: skip
    """Bits of the peaks of each segment, as `peak_kernel` has them: int32 `[N, H, G', pitch / 16]`.

    Args:
        q: holds the sampled rows.
        keys: what they are scored against.
        config: the rule.
        lists: which segments are dense, and how many columns the others can choose from.
        segments: G' of them.
        pitch: no less than any of these can choose from; a multiple of 128.
        log_norm: fp32 `[N, H, G', rows]`, normalisers of the sampled rows, as `sampled_lse_kernel`
            has them.
    """
    problem, facts, count = keys.problem, lists.geometry, len(segments)
    (n, heads, _), rows = lists.counts.shape, log_norm.shape[-1]
    table, dense = problem.sequences.table, lists.dense.view(torch.int8)
    outliers = lists.counts.new_empty(n, heads, count, config.outliers)
    peaks = lists.counts.new_empty(n, heads, count, pitch // 16)
    constants = {
        "SEGMENT": facts.size, "SAMPLE_STRIDE": config.row_stride, "ROWS": rows,
        "FARTHEST": config.outliers,
    }  # fmt: skip
    layout = keys.layout()
    choose: Any = farthest_rows_kernel[(count, heads, n)]
    choose(
        q, table, facts.limits, dense, outliers, q.stride()[:3], facts.segments, segments.start,
        HEAD_DIM=layout["HEAD_DIM"], BLOCK_D=layout["BLOCK_D"], **constants,
        **farthest_launch(rows),
    )  # fmt: skip
    tile, pages = peak_tile(config.outliers, problem.head_dim), problem.sequences.page_table
    tiles = -(-count // tile["BLOCK_S"]) * -(-pitch // PEAK_LAUNCH["CHUNK"])
    find: Any = peak_kernel[(tiles, heads, n)]
    find(
        q, keys.k, table, pages, facts.limits, dense, outliers, log_norm, peaks,
        q.stride()[:3], keys.k.stride()[:3], page_table_stride(pages), segments.start,
        segments.stop, facts.segments, pitch, keys.scale * LOG2E, _high(config),
        **layout, NUM_HEADS=heads, GROUP=problem.group_size, **constants, **tile, **PEAK_LAUNCH,
    )  # fmt: skip
    return peaks


def _high(config: SampleAttentionConfig) -> float:
    """How many octaves above a peak of the least share those are that runs begin from."""
    return math.inf if config.runs is None else math.log2(PEAK * config.runs)
