"""Launches the selection by mean and spread of the queries: everything up to the lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import (
    CENTRE_STRIDE,
    MOST_HEAVY,
    SPREAD_SHARE,
    WINDOW_ALIGNMENT,
    SampleAttentionConfig,
)
from ...kernels.layout import LOG2E, padded_dim, page_table_stride, power_of_two
from ..geometry import moments_of
from .column_mass import Keys
from .geometry import groups
from .lists import Lists
from .moments_kernel import key_sums_kernel, moments_kernel, rank_kernel, rank_sum_kernel
from .sampled_mass import Ranked, count_on_probes

KEY_SUMS_LAUNCH = {"num_warps": 8}
MOMENTS_LAUNCH = {"num_warps": 4}
RANK_SUM_LAUNCH = {"num_warps": 8, "num_stages": 3}
RANK_LAUNCH = {"CHUNK": 1024, "num_warps": 8, "num_stages": 3}

CENTRES = {"KEY_TILE": WINDOW_ALIGNMENT, "CENTRE_STRIDE": CENTRE_STRIDE, "TILES": 16}
"""Keys of a tile, the distance of those that count, and tiles that are summed at once."""

RANKED_TOGETHER = 128
"""Segments of heads that share keys that one program ranks for; half where these are wide."""

PARTS = 4
"""Programs that rank the regular probes of a tile of segments: few segments still fill the GPU."""

ROOM = 2 * MOST_HEAVY
"""Heavy columns of a segment that are probed; with more it is dense."""


@dataclass(frozen=True)
class Moments:
    """What ranks the keys for the segments of a call.

    Attributes:
        means: `[N, H, G, BLOCK_D]`, less what the variance gives to the mean key.
        spreads: like `means`, half the share of the variance that counts.
    """

    means: Tensor
    spreads: Tensor


def fill_by_spread(q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists) -> None:
    """Fill the lists of every segment."""
    moments = _moments(q, keys, config, lists)
    tile = rank_tile(keys.problem.head_dim, keys.problem.group_size)
    for segments, pitch in groups(keys.problem, lists.geometry, 1, tile["BLOCK_S"]):
        ranked = _rank(moments, keys, config, lists, segments, pitch)
        count_on_probes(q, keys, config, lists, ranked)
        lists.write(ranked.bits, segments)


def rank_tile(head_dim: int, group_size: int) -> dict[str, int]:
    """Heads, segments of each and columns that are ranked at once.

    The columns of segments end where these begin: few of many heads waste less than many of one.
    """
    rows, columns = (RANKED_TOGETHER, 64) if head_dim <= 128 else (RANKED_TOGETHER // 2, 32)
    heads = min(rows, power_of_two(group_size))
    return {"HEADS": heads, "BLOCK_S": rows // heads, "BLOCK_N": columns}


def _key_sums(keys: Keys) -> Tensor:
    """Sums of the sampled keys up to each tile, as `load_centre` reads them."""
    problem, pages = keys.problem, keys.problem.sequences.page_table
    table, kv_heads = problem.sequences.table, problem.num_heads // problem.group_size
    tiles = problem.sequences.max_kv_len // WINDOW_ALIGNMENT
    block_d = padded_dim(problem.head_dim)
    sums = keys.k.new_empty(len(table), kv_heads, tiles, block_d, dtype=torch.float32)
    launch: Any = key_sums_kernel[(max(1, -(-tiles // CENTRES["TILES"])), kv_heads, len(table))]
    launch(
        keys.k, table, pages, sums, keys.k.stride()[:3], page_table_stride(pages), tiles,
        GROUP=problem.group_size, **keys.layout(), **CENTRES, **KEY_SUMS_LAUNCH,
    )  # fmt: skip
    return sums


def _moments(q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists) -> Moments:
    problem, size = keys.problem, lists.geometry.size
    block_d, (n, heads, segments) = padded_dim(problem.head_dim), lists.counts.shape
    means, spreads = q.new_empty(2, n, heads, segments, block_d)
    sums = _key_sums(keys)
    launch: Any = moments_kernel[(segments, heads, n)]
    launch(
        q, problem.sequences.table, lists.geometry.always.view(torch.int8), lists.geometry.limits,
        sums, lists.dense.view(torch.int8), means, spreads, q.stride()[:3], segments, sums.shape[2],
        SPREAD_SHARE * keys.scale / 2,
        GROUP=problem.group_size, HEAD_DIM=problem.head_dim, BLOCK_D=block_d, SEGMENT=size,
        BLOCK_M=power_of_two(size), SAMPLE_STRIDE=config.sample_stride, **CENTRES, **MOMENTS_LAUNCH,
    )  # fmt: skip
    return Moments(means, spreads)


def _rank(
    moments: Moments, keys: Keys, config: SampleAttentionConfig, lists: Lists, segments: range,
    pitch: int,
) -> Ranked:  # fmt: skip
    """Sum the ranks of the regular probes, then rank all columns relative to the sum."""
    problem, facts, k = keys.problem, lists.geometry, keys.k
    pages, dense = problem.sequences.page_table, lists.dense.view(torch.int8)
    probes = moments_of(config).sampled_keys or MOST_HEAVY
    (n, heads, _), count = lists.counts.shape, len(segments)
    ranked = Ranked.empty((n, heads, count), segments, pitch, probes, ROOM, k.device)
    tile = rank_tile(problem.head_dim, problem.group_size)
    head = moments.means, moments.spreads, k, facts.limits, dense, problem.sequences.table, pages
    tail = segments.start, segments.stop, facts.segments
    constants = {
        **keys.layout(), **tile, "NUM_HEADS": heads, "GROUP": problem.group_size,
        "SAMPLED_KEYS": probes, "PARTS": PARTS,
    }  # fmt: skip
    tiles = -(-count // tile["BLOCK_S"])
    head_tiles = heads // problem.group_size * -(-problem.group_size // tile["HEADS"])
    strides = k.stride()[:3], page_table_stride(pages)
    parts = k.new_empty(2, n, heads, count, PARTS, dtype=torch.float32)
    rank_sum: Any = rank_sum_kernel[(tiles * PARTS, head_tiles, n)]
    rank_sum(*head, *parts, *strides, *tail, keys.scale * LOG2E, **constants, **RANK_SUM_LAUNCH)
    rank: Any = rank_kernel[(tiles * -(-pitch // RANK_LAUNCH["CHUNK"]), head_tiles, n)]
    rank(
        *head, *parts, ranked.bins, ranked.bits, *strides, *tail, pitch, keys.scale * LOG2E,
        **constants, MOST_HEAVY=MOST_HEAVY, **RANK_LAUNCH,
    )  # fmt: skip
    return ranked
