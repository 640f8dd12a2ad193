"""Our rule: every segment of query rows selects its own columns."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..errors import InvalidConfig
from .checks import check_count
from .fixed import WINDOW_ALIGNMENT
from .parts import (
    RANKINGS,
    Budget,
    Check,
    PooledQueries,
    QueryMoments,
    Ranking,
    default_budget,
    default_check,
    default_ranking,
)
from .rule import Config, head

LEAST_COVERAGE = 1e-3
"""Least share that depth leaves to a layer."""

_LOWEST = {"window": 1, "segment": 1, "sample_stride": 1, "dense_prefix": 0, "dense_tail": 0}


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleAttentionConfig(Config):
    """How keys are selected: sampling (stage 1), filtering (stage 2) and the keys always kept.

    Attributes:
        coverage: share of the sampled mass that the selection keeps, in (0, 1], by the smallest
            set of columns, as in top-p sampling; 1 is dense.
        window: latest keys that every query keeps, itself included; 1 or more.
        segment: a block of consecutive query rows, aligned to absolute positions, that share one
            selection per head; up to 128, or a multiple of it.
        sample_stride: one query row in every `sample_stride` is sampled exactly; divides `segment`.
        ranking: how columns are ranked: by `QueryMoments` in segments of up to 128 rows, by
            `PooledQueries`, or by the `SampledRows`. The sampled rows decide how many are kept.
        budget: how the loss is shared out among layers, segments and heads.
        check: rows on which the retained mass is measured, and the least that a head may have.
        dense_prefix: segments that end at or before this position attend to every key.
        dense_tail: segments that hold one of this many last rows of the call attend to every key:
            a prompt's question stands there, in few rows.
        dense_above: a segment that would keep more than this share of its selectable columns is
            computed dense.

    Raises:
        InvalidConfig: a value is outside its range, or does not divide the segment.

    Source: arXiv 2406.15486, section 4 and, for what differs, the page *How it works*.
    """

    NAME: ClassVar[str] = "sample_attention"
    HEAD: ClassVar[tuple[str, ...]] = head(NAME)

    coverage: float = 0.945
    window: int = 128
    segment: int = 128
    sample_stride: int = 4
    ranking: Ranking = field(default_factory=default_ranking)
    budget: Budget = field(default_factory=default_budget)
    check: Check = field(default_factory=default_check)
    dense_prefix: int = 1024
    dense_tail: int = 64
    dense_above: float = 0.75

    def __post_init__(self) -> None:
        """Check ranges; numbers of other libraries become Python's own."""
        self._check_share("coverage", "dense_above")
        for name, lowest in _LOWEST.items():
            self._keep(name, check_count(name, getattr(self, name), lowest))
        self._check_part("ranking", RANKINGS)
        self._check_part("budget", (Budget,))
        self._check_part("check", (Check,))
        self._check_segment()
        self._write()

    def _check_segment(self) -> None:
        if self.segment > WINDOW_ALIGNMENT and self.segment % WINDOW_ALIGNMENT:
            raise InvalidConfig(
                f"segment={self.segment} must be at most {WINDOW_ALIGNMENT} or a multiple of it"
            )
        divisors = {"sample_stride": self.sample_stride}
        if isinstance(self.ranking, PooledQueries):
            divisors["PooledQueries.rows"] = self.ranking.rows
        for name, value in divisors.items():
            if self.segment % value:
                raise InvalidConfig(
                    f"{name}={value} must divide segment={self.segment}; choose a power of two "
                    "such as 8 or 16"
                )
        if isinstance(self.ranking, QueryMoments) and self.segment > WINDOW_ALIGNMENT:
            raise InvalidConfig(
                f"QueryMoments needs segments of at most {WINDOW_ALIGNMENT} rows, got "
                f"segment={self.segment}; set segment={WINDOW_ALIGNMENT}, or rank by "
                "PooledQueries or SampledRows"
            )

    @property
    def dense(self) -> bool:
        """Whether the thresholds ask for all of the mass, so that nothing can be dropped."""
        return self.budget.heads is None and self.coverage == 1

    def for_layer(self, layer: int, layers: int) -> SampleAttentionConfig:
        """The configuration in one layer of a model, by its depth t from -1, the first, to 1.

            1 - coverage(t) = (1 - coverage) * layer_ratio ** (t² - mean of t² over the layers)

        The geometric mean of the layers' losses stays that of `coverage`. A table of heads has its
        own answer, and is left as it is.

        Args:
            layer: from 0; one beyond the last, as of a draft head, counts as the last.
            layers: of the model.
        """
        if self.budget.layer_ratio == 1 or self.budget.heads is not None:
            return self
        return _at_depth(self, min(layer, layers - 1), layers)


@functools.lru_cache(maxsize=1024)  # decoding asks again in every layer
def _at_depth(config: SampleAttentionConfig, layer: int, layers: int) -> SampleAttentionConfig:
    deep = (2 * layer / (layers - 1) - 1) ** 2 if layers > 1 else 1.0
    mean = (layers + 1) / (3 * (layers - 1)) if layers > 1 else 1.0
    losing = (1 - config.coverage) * config.budget.layer_ratio ** (deep - mean)
    budget = replace(config.budget, layer_ratio=1.0)
    return replace(config, coverage=max(1 - losing, LEAST_COVERAGE), budget=budget)
