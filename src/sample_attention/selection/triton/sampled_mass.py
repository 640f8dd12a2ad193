"""Launches the counting on probed columns: which columns a segment keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...kernels.layout import LOG2E, page_table_stride, power_of_two
from ..geometry import moments_of
from .column_mass import Keys
from .lists import Lists
from .peaks import find_peaks
from .sampled_mass_kernel import (
    heavy_lse_kernel,
    sampled_lse_kernel,
    sampled_mass_kernel,
    threshold_and_flag_kernel,
)

HEAVY_LSE_LAUNCH = {"BLOCK_N": 64, "WORDS": 256, "num_warps": 4, "num_stages": 1}
SAMPLED_LSE_LAUNCH = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2, "maxnreg": 128}
SAMPLED_MASS_LAUNCH = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2}
THRESHOLD_LAUNCH = {"BLOCK_N": 64, "BLOCK": 4096, "num_warps": 4, "num_stages": 1}

SAMPLED_TOGETHER = 64
"""Sampled rows of segments that share probes that one program scores, if a head has no more."""


@dataclass(frozen=True)
class Ranked:
    """Ranks of the columns of G' segments; the lists of the heavy ones are filled on counting.

    Attributes:
        segments: which.
        probes: the most regular ones of a segment.
        bins: uint8 `[N, H, G', pitch]`.
        bits: int32 `[N, H, G', pitch / 32]`, the heavy columns; after counting those kept.
        heavy: int32 `[N, H, G', room]`, a list of them.
        heavy_counts: int32 `[N, H, G']`.
    """

    segments: range
    probes: int
    bins: Tensor
    bits: Tensor
    heavy: Tensor
    heavy_counts: Tensor

    @classmethod
    def empty(
        cls, shape: tuple[int, int, int], segments: range, pitch: int, probes: int, room: int,
        device: torch.device,
    ) -> Ranked:  # fmt: skip
        """Room for the ranks of `[N, H, G']` lists."""
        counts = torch.empty(shape, dtype=torch.int32, device=device)
        return cls(
            segments, probes, counts.new_empty(*shape, pitch, dtype=torch.uint8),
            counts.new_empty(*shape, pitch // 32), counts.new_empty(*shape, room), counts,
        )  # fmt: skip


def count_on_probes(
    q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists, ranked: Ranked
) -> None:
    """Turn the bits of heavy columns into those of the columns to keep, and count these."""
    problem, facts, pages = keys.problem, lists.geometry, keys.problem.sequences.page_table
    n, heads, count, pitch = ranked.bins.shape
    dense, group = lists.dense.view(torch.int8), problem.group_size
    probes, room = ranked.probes, ranked.heavy.shape[-1]
    rows = max(16, power_of_two(facts.size // config.sample_stride))
    together = min(power_of_two(group), max(1, SAMPLED_TOGETHER // rows))
    row_max, row_sum, log_norm = q.new_empty(3, n, heads, count, rows, dtype=torch.float32)
    mass = q.new_empty(n, heads, count, probes, dtype=torch.float32)
    heavy_mass = q.new_empty(n, heads, count, room, dtype=torch.float32)
    first = q, keys.k, problem.sequences.table, pages
    heavy = ranked.heavy_counts, ranked.heavy
    strides = q.stride()[:3], keys.k.stride()[:3], page_table_stride(pages)
    last = facts.segments, ranked.segments.start
    scale = keys.scale * LOG2E
    constants = {
        **keys.layout(), "NUM_HEADS": heads, "GROUP": group, "SEGMENT": facts.size,
        "SAMPLE_STRIDE": config.sample_stride, "ROWS": rows, "SAMPLED_KEYS": probes,
    }  # fmt: skip
    heavy_lse: Any = heavy_lse_kernel[(count, heads, n)]
    heavy_lse(
        *first, facts.limits, dense, ranked.bits, *heavy, row_max, row_sum, *strides, pitch,
        *last, scale, **constants, ROOM=room, **HEAVY_LSE_LAUNCH,
    )  # fmt: skip
    tile = {"HEADS": together, "BLOCK_S": max(1, SAMPLED_TOGETHER // (together * rows))}
    grid = -(-count // tile["BLOCK_S"]), heads // group * -(-group // together), n
    span = ranked.segments.start, ranked.segments.stop, facts.segments
    sampled_lse: Any = sampled_lse_kernel[grid]
    sampled_lse(
        *first, facts.limits, dense, row_max, row_sum, log_norm, *strides, *span, scale,
        **constants, **tile, **SAMPLED_LSE_LAUNCH,
    )  # fmt: skip
    sampled_mass: Any = sampled_mass_kernel[grid]
    sampled_mass(
        *first, facts.limits, dense, log_norm, mass, *strides, *span, scale,
        **constants, **tile, **SAMPLED_MASS_LAUNCH,
    )  # fmt: skip
    peaks = None
    if moments_of(config).farthest_rows:
        peaks = find_peaks(q, keys, config, lists, ranked.segments, pitch, log_norm)
    launch: Any = threshold_and_flag_kernel[(count, heads, n)]
    launch(
        *first, ranked.bins, facts.limits, dense, *heavy, log_norm, mass, heavy_mass, peaks,
        lists.counts, ranked.bits, *strides, pitch, *last, lists.coverage,
        config.budget.tighten_below or 1, config.dense_above, scale, **constants, ROOM=room,
        BLOCK_P=power_of_two(max(probes, room)), **THRESHOLD_LAUNCH,
    )  # fmt: skip
