"""Selection on the device: no step waits for it, and all memory is bounded before the first."""

from __future__ import annotations

import torch
from torch import Tensor

from ...config import (
    Config,
    MlsysConfig,
    PaperConfig,
    PooledQueries,
    QueryMoments,
    SampleAttentionConfig,
)
from ...kernels.layout import LOG2E
from ...plan import HeldOut, StripePlan
from ...problem import Problem
from ..geometry import plan_form
from ..lists import SegmentLists
from .column_mass import Keys, mark_not_finite, mean_queries, score, write_mass
from .geometry import Geometry, coverage, geometry, groups
from .lists import Lists, fewest
from .moments import fill_by_spread
from .published import fill_blocks
from .row_tables import listed

ALWAYS_LISTED = 2**26
"""Entries that the lists of a call may hold in any case, if that many columns can be kept."""

LISTED_SHARE = 0.25
"""Entries that they may hold beyond that, as a share of the columns of all segments."""

FILTERED_TOGETHER = 32
"""Segments are filtered in multiples of this, which fill whole tiles of mean queries."""

COLUMN_BYTES = 3
"""A bin and a mass, while a column is filtered."""


def select(q: Tensor, k: Tensor, problem: Problem, config: Config, scale: float) -> StripePlan:
    """Stages 1 and 2 for q `[B, H, Sq, D]` and k `[B, Hkv, Skv, D]`."""
    keys, facts, form = Keys(k, problem, scale), geometry(problem, config), plan_form(config)
    lists = Lists.empty(facts, coverage(problem, config), _capacity(problem, config, facts))
    if config.dense:
        lists.dense.fill_(value=True)
    else:
        mark_not_finite(k, problem, lists.dense, queries=False)
        ranking = config.ranking if isinstance(config, SampleAttentionConfig) else None
        if not isinstance(ranking, (QueryMoments, PooledQueries)):  # means see every row of q
            mark_not_finite(q, problem, lists.dense, queries=True)
        if isinstance(config, MlsysConfig):
            fill_blocks(q, keys, config, lists)
        elif isinstance(config, PaperConfig):
            _select_whole(q, keys, config, lists)
        elif isinstance(config, SampleAttentionConfig) and isinstance(ranking, QueryMoments):
            fill_by_spread(q, keys, config, lists)
        elif isinstance(config, SampleAttentionConfig):
            _select_segments(q, keys, config, lists)
    return StripePlan(
        indices=lists.indices, offsets=lists.offsets, counts=lists.counts, dense=lists.dense,
        sequences=problem.sequences, segment=facts.size, window=facts.window,
        window_alignment=form.window_alignment, key_block=form.key_block,
        dense_tail=form.dense_tail,
        held_out=_held_out(q, keys, config) if config.check.held_out_rows else None,
    )  # fmt: skip


def _capacity(problem: Problem, config: Config, facts: Geometry) -> int:
    """Entries of all lists: what they can hold at most, or a bound on memory."""
    columns = problem.num_heads * facts.columns
    most = columns
    if isinstance(config, SampleAttentionConfig):
        most = int(config.dense_above * columns)
    return min(most, max(ALWAYS_LISTED, int(LISTED_SHARE * columns)))


def _select_whole(q: Tensor, keys: Keys, config: PaperConfig, lists: Lists) -> None:
    """v1: the fewest columns that hold the share of the mass of rows at equal distances."""
    s, facts = keys.problem.sequences, lists.geometry
    mass = torch.empty(*lists.counts.shape, s.max_kv_len, dtype=torch.float32, device=q.device)
    rows = score(q, facts.exact, keys)
    write_mass(rows, keys, facts.limits, lists.dense, range(1), mass=mass)
    absent = torch.arange(s.max_kv_len, device=q.device) >= s.table[:, 4, None]
    mass.masked_fill_(absent[:, None, None], 0.0)
    outside = mass.sum(-1)
    lists.dense.logical_or_(~outside.isfinite())
    lists.keep(fewest(mass, config.coverage * outside), range(1))


def _select_segments(q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists) -> None:
    """Mean queries rank the columns of each segment, exactly scored rows decide how many."""
    problem, facts = keys.problem, lists.geometry
    exact = score(q, facts.exact, keys, lists.dense)
    ranking = None
    if facts.pools is not None:
        means = mean_queries(q, facts.pools, problem)
        ranking = score(means, facts.pools.rows, keys, lists.dense)
    for segments, pitch in groups(problem, facts, COLUMN_BYTES, FILTERED_TOGETHER):
        shape = (*lists.counts.shape[:2], len(segments), pitch)
        bins = torch.empty(shape, dtype=torch.uint8, device=q.device)
        mass = torch.empty(shape, dtype=torch.bfloat16, device=q.device)
        where = keys, facts.limits, lists.dense, segments
        if ranking is None:
            write_mass(exact, *where, mass=mass, bins=bins)
        else:
            write_mass(ranking, *where, bins=bins)
            write_mass(exact, *where, mass=mass)
        lists.decide(bins, mass, segments, config)


def _held_out(q: Tensor, keys: Keys, config: Config) -> HeldOut:
    """Dense log-sum-exp of the held-out rows, 0 where a segment has fewer."""
    rows = SegmentLists(keys.problem, config).held_out_rows().to(q.device, non_blocking=True)
    lse = score(q, listed(keys.problem, config, rows), keys).lse / LOG2E
    lse = lse.view(len(rows), keys.problem.num_heads, *rows.shape[1:])
    return HeldOut(rows, lse.masked_fill((rows < 0)[:, None], 0.0))
