"""Where windows, segments and dense rows of a rule lie, from numbers known on the host."""

from __future__ import annotations

import math

from torch import Tensor

from ..config import (
    WINDOW_ALIGNMENT,
    Config,
    MlsysConfig,
    PaperConfig,
    QueryMoments,
    SampleAttentionConfig,
)
from ..errors import InvalidConfig
from ..plan import WHOLE, PlanForm, window_edge


def plan_form(rule: Config) -> PlanForm:
    """The form of the plans that a rule makes."""
    if isinstance(rule, SampleAttentionConfig):
        return PlanForm(rule.segment, min(rule.segment, WINDOW_ALIGNMENT))
    if isinstance(rule, PaperConfig):
        return PlanForm(WHOLE, dense_tail=rule.dense_tail)
    if isinstance(rule, MlsysConfig):
        return PlanForm(rule.key_block, key_block=rule.key_block)
    raise TypeError(f"no rule of ours: {rule!r}")


def window_for(rule: Config, kv_len: int) -> int:
    """The window, in keys, for a sequence of `kv_len` keys."""
    if isinstance(rule, PaperConfig):
        return math.ceil(rule.window_ratio * kv_len)
    return rule.window if isinstance(rule, SampleAttentionConfig) else 0


def window_edges(positions: Tensor, window: int | Tensor, alignment: int) -> Tensor:
    """First key of the window of the rows at `positions`, or 0: columns lie left of it.

    Args:
        positions: integers.
        window: keys, one number or such as broadcast to `positions`.
        alignment: rows that share one left edge.
    """
    return window_edge(positions, window, alignment).clamp_(min=0)


def tail_from(config: SampleAttentionConfig, kv_len: int) -> int:
    """Position from which on the segments of a sequence of `kv_len` keys attend to every key."""
    first = max(0, kv_len - config.dense_tail)
    return first // config.segment * config.segment if config.dense_tail else first


def coverage_of(rule: Config, num_heads: int) -> tuple[float, ...]:
    """The share of each query head.

    Raises:
        InvalidConfig: `Budget.heads` is for another number of heads.
    """
    heads = rule.budget.heads if isinstance(rule, SampleAttentionConfig) else None
    shares = heads or (rule.coverage,) * num_heads
    if len(shares) != num_heads:
        raise InvalidConfig(
            f"heads has {len(shares)} shares, and the call {num_heads} query heads; give one for "
            "each"
        )
    return shares


def moments_of(rule: Config) -> QueryMoments:
    """The ranking of a rule that is known to rank by moments."""
    ranking = rule.ranking if isinstance(rule, SampleAttentionConfig) else None
    if not isinstance(ranking, QueryMoments):
        raise TypeError(f"not ranked by QueryMoments: {rule!r}")
    return ranking


def stride_of(rule: Config) -> int | None:
    """One query row in how many is sampled; None: rows are chosen otherwise."""
    strided = isinstance(rule, (SampleAttentionConfig, PaperConfig))
    return rule.sample_stride if strided else None
