"""Launches the selection by mean and spread of the queries."""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from ...config import MOST_HEAVY, SPREAD_SHARE, SampleAttentionConfig
from .filtering import Lists
from .geometry import groups
from .layout import LOG2E, padded_dim, page_table_stride
from .mass import Keys
from .spread_kernel import count_kernel, moments_kernel, probe_kernel, rank_kernel

RANK_LAUNCH = {"BLOCK_N": 128, "CHUNK": 2048, "num_warps": 8, "num_stages": 2}
PROBE_LAUNCH = {"BLOCK": 2048, "num_warps": 4}
COUNT_LAUNCH = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2}

RANKED_TOGETHER = 64
"""Segments whose ranks one program computes; half as many where heads are wider than 128."""

ROOM = 2 * MOST_HEAVY
"""Heavy columns of a segment that are probed; with more it is dense."""


def fill_by_spread(q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists) -> None:
    """Fill the lists of every segment."""
    moments = _moments(q, keys, config, lists)
    for segments, pitch in groups(keys.problem, lists.geometry, 2, RANKED_TOGETHER):
        shape = (*lists.counts.shape[:2], len(segments), pitch)
        classes = torch.empty(shape, dtype=torch.int16, device=q.device)
        _rank(moments, keys, lists, segments, classes)
        _decide(q, keys, config, lists, segments, classes)
        lists.collect(classes, segments)


def _moments(
    q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists
) -> tuple[Tensor, Tensor]:
    problem, size = keys.problem, lists.geometry.size
    block_d, (n, heads, segments) = padded_dim(problem.head_dim), lists.counts.shape
    means, spreads = (q.new_empty(n, heads, segments, block_d) for _ in range(2))
    launch: Any = moments_kernel[(segments, heads, n)]
    launch(
        q, problem.sequences.table, lists.geometry.ends, lists.dense.view(torch.int8), means,
        spreads, q.stride()[:3], segments, config.dense_prefix,
        SPREAD_SHARE * keys.scale / 2,
        HEAD_DIM=problem.head_dim, BLOCK_D=block_d, SEGMENT=size,
        BLOCK_M=triton.next_power_of_2(size), ROW_STRIDE=config.row_stride, num_warps=4,
    )  # fmt: skip
    return means, spreads


def _rank(
    moments: tuple[Tensor, Tensor], keys: Keys, lists: Lists, segments: range, classes: Tensor
) -> None:
    problem, pages = keys.problem, keys.problem.sequences.page_table
    n, heads, count, pitch = classes.shape
    together = RANKED_TOGETHER if problem.head_dim <= 128 else RANKED_TOGETHER // 2
    tiles = triton.cdiv(count, together) * triton.cdiv(pitch, RANK_LAUNCH["CHUNK"])
    launch: Any = rank_kernel[(tiles, heads, n)]
    launch(
        *moments, keys.k, lists.geometry.limits, lists.dense.view(torch.int8),
        problem.sequences.table, pages, classes, keys.k.stride()[:3], page_table_stride(pages),
        segments.start, segments.stop, lists.geometry.segments, pitch, keys.scale * LOG2E,
        **keys.layout(), NUM_HEADS=heads, GROUP=problem.group_size, BLOCK_S=together, **RANK_LAUNCH,
    )  # fmt: skip


def _decide(
    q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists, segments: range,
    classes: Tensor,
) -> None:  # fmt: skip
    """Find from which class on each segment keeps columns, and how many these are."""
    problem, facts, pages = keys.problem, lists.geometry, keys.problem.sequences.page_table
    n, heads, count, pitch = classes.shape
    probes = config.probes or MOST_HEAVY
    tile = COUNT_LAUNCH["BLOCK_N"]
    slots = 1 << ((-(-probes // tile) - (-ROOM // tile)) * tile - 1).bit_length()
    total, dense = n * heads * count, lists.dense.view(torch.int8)
    heavy_from, heavy_counts = (q.new_empty(total, dtype=torch.int32) for _ in range(2))
    heavy = q.new_empty(total, ROOM, dtype=torch.int32)
    histogram = q.new_empty(total, 256, dtype=torch.int32)
    found = heavy_from, heavy_counts, heavy, histogram
    probe: Any = probe_kernel[(count, heads, n)]
    probe(
        classes, facts.limits, dense, *found, pitch, facts.segments, segments.start,
        PROBES=probes, BLOCK_P=triton.next_power_of_2(probes), MOST_HEAVY=MOST_HEAVY, ROOM=ROOM,
        **PROBE_LAUNCH,
    )  # fmt: skip
    mass = q.new_empty(total, slots, dtype=torch.float32)
    bins = q.new_empty(total, slots, dtype=torch.uint8)
    launch: Any = count_kernel[(count, heads, n)]
    launch(
        q, keys.k, problem.sequences.table, pages, classes, facts.limits, *found, mass, bins,
        lists.threshold, lists.counts, dense, q.stride()[:3], keys.k.stride()[:3],
        page_table_stride(pages), pitch, facts.segments, segments.start, config.coverage,
        config.dense_above, keys.scale * LOG2E,
        **keys.layout(), NUM_HEADS=heads, GROUP=problem.group_size, SEGMENT=facts.size,
        ROW_STRIDE=config.row_stride,
        BLOCK_M=max(16, triton.next_power_of_2(facts.size // config.row_stride)),
        PROBES=probes, ROOM=ROOM, SLOTS=slots, RESIDUAL=config.residual, **COUNT_LAUNCH,
    )  # fmt: skip
