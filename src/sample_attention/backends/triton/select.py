"""Selection on the device: no step waits for it, and all memory is bounded before the first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan import Probe, StripePlan
from ...plan.stripe import WHOLE
from ...problem import Problem
from ...selection.lists import SegmentLists
from .blocks import select_blocks
from .filtering import Lists
from .mass import Keys, column_mass, finite_heads, mean_of_rows, row_lse
from .rows import ScoredRows, listed, mean_queries, pools, segment_ends, strided, window_edges
from .whole import select_whole

SCRATCH_BYTES = 2**29
"""Most memory of the masses and classes of segments that are filtered together, about."""

ALWAYS_LISTED = 2**26
"""Entries that the lists of a call may hold in any case, if that many columns can be kept."""

LISTED_SHARE = 0.25
"""Entries that they may hold beyond that: a share of the columns of all segments."""

STEP = 32
"""Segments are filtered in multiples of this, which fill whole tiles of mean queries."""

LN2 = 0.6931471805599453


def select(
    q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, scale: float
) -> StripePlan:
    """Stages 1 and 2 for q `[B, H, Sq, D]` and k `[B, Hkv, Skv, D]`."""
    keys = Keys(k, problem, scale)
    blocks = config.chunk_tails is not None
    size = config.key_block if blocks else config.segment or WHOLE
    window = window_lengths(problem, config)
    lists = _empty_lists(q, k, problem, config, window, size)
    if config.dense:
        lists.dense.fill_(value=True)
    elif blocks:
        select_blocks(q, keys, config, lists)
    elif config.segment is None:
        select_whole(q, keys, config, lists, window)
    else:
        _select_segments(q, keys, config, lists, window)
    return StripePlan(
        indices=lists.indices, offsets=lists.offsets, counts=lists.counts, dense=lists.dense,
        sequences=problem.sequences, segment=size, window=window,
        window_alignment=config.window_alignment, key_block=config.key_block,
        dense_tail=config.dense_tail,
        probe=_probe(q, keys, config) if config.held_out else None,
    )  # fmt: skip


def _select_segments(
    q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists, window: Tensor
) -> None:
    """Mean queries rank the columns of each segment, exactly scored rows decide how many."""
    problem, total = keys.problem, lists.limits.shape[1]

    def scored(rows: ScoredRows) -> tuple[ScoredRows, Tensor, Tensor]:
        lse = row_lse(rows, keys)
        lists.dense |= lse.isnan().unflatten(2, (total, -1)).any(-1)
        return rows, lse, window_edges(rows.position, window, config)

    exact = ranking = scored(strided(q, problem, config, total))
    if config.pool is not None:
        low, high = pools(problem, config, total)
        ranking = scored(mean_queries(mean_of_rows(q, low, high, problem), low, high))
    for segments, pitch in _groups(problem, config, total):
        shape = (*lists.counts.shape[:2], len(segments), pitch)
        classes = torch.empty(shape, dtype=torch.uint8, device=q.device)
        mass = torch.empty(shape, dtype=torch.bfloat16, device=q.device)
        column_mass(*ranking, keys, lists, segments, classes)
        column_mass(*exact, keys, lists, segments, mass)
        lists.decide(classes, mass, segments, config)
        lists.collect(classes, segments)


def _groups(
    problem: Problem, config: SampleAttentionConfig, total: int
) -> Iterator[tuple[range, int]]:
    """Runs of segments whose scratch fits, and the keys that any row of theirs sees, about."""
    rows, size = problem.sequences.rows(), config.segment or WHOLE
    before = max((kv_len - q_len) // size for _, _, q_len, _, kv_len in rows)
    heads, first = len(rows) * problem.num_heads, 0
    while first < total:
        count, pitch = STEP, 0
        while True:
            keys = min((before + first + count) * size, problem.sequences.max_kv_len)
            wanted = -(-keys // 128) * 128
            if pitch and 3 * heads * count * wanted > SCRATCH_BYTES:
                count -= STEP
                break
            pitch = wanted
            if first + count >= total:
                break
            count += STEP
        yield range(first, min(first + count, total)), pitch
        first += count


def _empty_lists(
    q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, window: Tensor, size: int
) -> Lists:
    """Room for the lists; heads with a NaN or infinity in q or k are dense from the start."""
    rows = problem.sequences.rows()
    spans = [(kv_len - q_len, kv_len) for _, _, q_len, _, kv_len in rows]
    starts = [range(lo // size, -(-hi // size)) for lo, hi in spans]
    total = max(len(x) for x in starts)
    ends = segment_ends(problem, size, total)
    kv_len = problem.sequences.table[:, 4, None]
    if config.segment is not None:
        limits = window_edges(torch.minimum(ends, kv_len) - 1, window, config)
    else:
        limits = -(-torch.minimum(ends, kv_len) // config.key_block)
    columns = problem.num_heads * sum(
        -(-min((g + 1) * size, hi) // config.key_block)
        for (_, hi), some in zip(spans, starts, strict=True)
        for g in some
    )
    most = columns if config.segment is None else int(config.dense_above * columns)
    capacity = min(most, max(ALWAYS_LISTED, int(LISTED_SHARE * columns)))
    lists = Lists.empty(problem.num_heads, limits, ends, max(capacity, 1))
    bad = ~finite_heads(k, problem, queries=False).repeat_interleave(problem.group_size, 1)
    if config.pool is None:  # mean queries see every row of q
        bad |= ~finite_heads(q, problem, queries=True)
    lists.dense |= bad[..., None]
    return lists


def window_lengths(problem: Problem, config: SampleAttentionConfig) -> Tensor:
    """The window of each sequence, in keys: int32 `[N]`."""
    kv_len = problem.sequences.table[:, 4]
    if config.window_ratio is None:
        return torch.full_like(kv_len, config.window)
    return (kv_len.double() * config.window_ratio).ceil().int()


def _probe(q: Tensor, keys: Keys, config: SampleAttentionConfig) -> Probe:
    """Dense log-sum-exp of the held-out rows, 0 where a segment has fewer."""
    rows = SegmentLists(keys.problem, config).probe_rows().to(q.device, non_blocking=True)
    lse = row_lse(listed(q, keys.problem, rows), keys) * LN2
    lse = lse.view(len(rows), keys.problem.num_heads, *rows.shape[1:])
    return Probe(rows, lse.masked_fill((rows < 0)[:, None], 0.0))
