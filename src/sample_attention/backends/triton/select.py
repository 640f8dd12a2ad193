"""Selection on the device: no step waits for it, and all memory is bounded before the first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan import Probe, StripePlan
from ...problem import Problem
from ...selection.lists import SegmentLists
from .blocks import fill_blocks
from .filtering import Lists, fewest
from .geometry import Geometry, geometry
from .layout import LOG2E
from .mass import Keys, mark_not_finite, mean_queries, score, write_mass
from .rows import listed

SCRATCH_BYTES = 2**29
"""Most memory of the masses and classes of segments that are filtered together, about."""

ALWAYS_LISTED = 2**26
"""Entries that the lists of a call may hold in any case, if that many columns can be kept."""

LISTED_SHARE = 0.25
"""Entries that they may hold beyond that, as a share of the columns of all segments."""

STEP = 32
"""Segments are filtered in multiples of this, which fill whole tiles of mean queries."""


def select(
    q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, scale: float
) -> StripePlan:
    """Stages 1 and 2 for q `[B, H, Sq, D]` and k `[B, Hkv, Skv, D]`."""
    keys, facts = Keys(k, problem, scale), geometry(problem, config)
    lists = Lists.empty(problem.num_heads, facts, _capacity(problem, config, facts))
    if config.dense:
        lists.dense.fill_(value=True)
    else:
        mark_not_finite(k, problem, lists.dense, queries=False)
        if config.pool is None:  # mean queries see every row of q
            mark_not_finite(q, problem, lists.dense, queries=True)
        if config.chunk_tails is not None:
            fill_blocks(q, keys, config, lists)
        elif config.segment is None:
            _select_whole(q, keys, config, lists)
        else:
            _select_segments(q, keys, config, lists)
    return StripePlan(
        indices=lists.indices, offsets=lists.offsets, counts=lists.counts, dense=lists.dense,
        sequences=problem.sequences, segment=facts.size, window=facts.window,
        window_alignment=config.window_alignment, key_block=config.key_block,
        dense_tail=config.dense_tail,
        probe=_probe(q, keys, config) if config.held_out else None,
    )  # fmt: skip


def _capacity(problem: Problem, config: SampleAttentionConfig, facts: Geometry) -> int:
    """Entries of all lists: what they can hold at most, or a bound on memory."""
    columns = problem.num_heads * facts.columns
    most = columns if config.segment is None else int(config.dense_above * columns)
    return min(most, max(ALWAYS_LISTED, int(LISTED_SHARE * columns)))


def _select_whole(q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists) -> None:
    """v1: the fewest columns that hold the share of the mass of rows at equal distances."""
    s, facts = keys.problem.sequences, lists.geometry
    mass = torch.empty(*lists.counts.shape, s.max_kv_len, dtype=torch.float32, device=q.device)
    rows = score(q, facts.exact, keys)
    write_mass(rows, keys, facts.limits, lists.dense, range(1), mass=mass)
    absent = torch.arange(s.max_kv_len, device=q.device) >= s.table[:, 4, None]
    mass.masked_fill_(absent[:, None, None], 0.0)
    outside = mass.sum(-1)
    need = config.coverage - (1 - outside) if config.residual else config.coverage * outside
    lists.dense.logical_or_(~outside.isfinite())
    lists.keep(fewest(mass, need), range(1))


def _select_segments(q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists) -> None:
    """Mean queries rank the columns of each segment, exactly scored rows decide how many."""
    problem, facts = keys.problem, lists.geometry
    exact = score(q, facts.exact, keys, lists.dense)
    ranking = None
    if facts.pools is not None:
        means = mean_queries(q, facts.pools, problem)
        ranking = score(means, facts.pools.rows, keys, lists.dense)
    for segments, pitch in _groups(problem, facts):
        shape = (*lists.counts.shape[:2], len(segments), pitch)
        classes = torch.empty(shape, dtype=torch.uint8, device=q.device)
        mass = torch.empty(shape, dtype=torch.bfloat16, device=q.device)
        where = keys, facts.limits, lists.dense, segments
        if ranking is None:
            write_mass(exact, *where, mass=mass, classes=classes)
        else:
            write_mass(ranking, *where, classes=classes)
            write_mass(exact, *where, mass=mass)
        lists.decide(classes, mass, segments, config)
        lists.collect(classes, segments)


def _groups(problem: Problem, facts: Geometry) -> Iterator[tuple[range, int]]:
    """Runs of segments whose scratch fits, and a bound of the columns that they can list."""
    s = problem.sequences
    before = max((kv_len - q_len) // facts.size for _, _, q_len, _, kv_len in s.rows())
    lists = len(s.table) * problem.num_heads
    first = 0
    while first < facts.segments:
        last, pitch = first, 0
        while last < facts.segments:
            keys = min((before + last + STEP) * facts.size, s.max_kv_len)
            wider = -(-keys // 128) * 128
            if pitch and 3 * lists * (last + STEP - first) * wider > SCRATCH_BYTES:
                break
            last, pitch = last + STEP, wider
        last = min(last, facts.segments)
        yield range(first, last), pitch
        first = last


def _probe(q: Tensor, keys: Keys, config: SampleAttentionConfig) -> Probe:
    """Dense log-sum-exp of the held-out rows, 0 where a segment has fewer."""
    rows = SegmentLists(keys.problem, config).probe_rows().to(q.device, non_blocking=True)
    lse = score(q, listed(keys.problem, config, rows), keys).lse / LOG2E
    lse = lse.view(len(rows), keys.problem.num_heads, *rows.shape[1:])
    return Probe(rows, lse.masked_fill((rows < 0)[:, None], 0.0))
