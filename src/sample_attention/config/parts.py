"""Parts of a configuration: how columns are ranked, how mass is shared out, what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from ..errors import InvalidConfig
from .checks import check_count, check_ratio, check_share, check_shares
from .fixed import PEAK
from .written import Written

MOST_FARTHEST_ROWS = 16
"""Largest `farthest_rows`."""

MOST_LAYER_RATIO = 64
"""Largest `layer_ratio`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryMoments(Written):
    """Rank columns by the mean and the variance of the queries of a segment: the default.

    Attributes:
        sampled_keys: columns at even distances that the sampled rows score, beside those of high
            rank, 16 or more; None: they score all.
        farthest_rows: sampled rows of a segment, by farthest-point sampling those least like the
            others, whose peaks are kept as well: a mean hides the needs of a single row. 0 to 16.
        run_share: a peak above this share of a farthest row's mass, 1/64 or more, also keeps its
            aligned block of 16 columns and both neighbours: text repeats in runs, and the rows
            next to this one need the columns next to it. Never at block 0. None: no runs.

    Raises:
        InvalidConfig: a value is outside its range.
    """

    KIND: ClassVar[str] = "query_moments"
    HEAD: ClassVar[tuple[str, ...]] = (f'"kind": "{KIND}"',)

    sampled_keys: int | None = 2048
    farthest_rows: int = 8
    run_share: float | None = 0.0625

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.sampled_keys is not None:
            self._keep("sampled_keys", check_count("sampled_keys", self.sampled_keys, 16))
        rows = check_count("farthest_rows", self.farthest_rows, 0, MOST_FARTHEST_ROWS)
        self._keep("farthest_rows", rows)
        if self.run_share is not None:
            self._keep("run_share", check_share("run_share", self.run_share))
            if self.run_share * PEAK < 1:
                raise InvalidConfig(
                    f"run_share must be 1/{PEAK}, the share of a peak, or more; "
                    f"got {self.run_share}"
                )
        self._write()


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledQueries(Written):
    """Rank columns by the mean queries of pools of consecutive rows.

    Attributes:
        rows: of a pool; divides the segment.

    Raises:
        InvalidConfig: a value is outside its range.
    """

    KIND: ClassVar[str] = "pooled_queries"
    HEAD: ClassVar[tuple[str, ...]] = (f'"kind": "{KIND}"',)

    rows: int = 32

    def __post_init__(self) -> None:
        """Check the range."""
        self._keep("rows", check_count("rows", self.rows, 1))
        self._write()


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledRows(Written):
    """Rank columns by the sampled rows themselves."""

    KIND: ClassVar[str] = "sampled_rows"
    HEAD: ClassVar[tuple[str, ...]] = (f'"kind": "{KIND}"',)

    def __post_init__(self) -> None:
        """Make the text."""
        self._write()


Ranking: TypeAlias = QueryMoments | PooledQueries | SampledRows
"""How the columns of a segment are ranked."""

RANKINGS = (QueryMoments, PooledQueries, SampledRows)
"""The kinds of ranking."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Budget(Written):
    """How the mass that may be lost is shared out among layers, segments and heads.

    Attributes:
        layer_ratio: ratio of the mass the first and the last layers may lose to that of the middle
            ones, 1 to 64. `for_layer` applies it; calls outside a model have the `coverage` as it
            is.
        tighten_below: a segment with n selectable columns, fewer than this, is held to a tighter
            coverage: its loss is scaled by `sqrt(n / tighten_below)`. None: all segments alike.
        heads: a share below 1 for each query head in place of `coverage`; None: all alike.

    Raises:
        InvalidConfig: a value is outside its range.
    """

    layer_ratio: float = 4.0
    tighten_below: int | None = 16384
    heads: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        ratio = check_ratio("layer_ratio", self.layer_ratio, MOST_LAYER_RATIO)
        self._keep("layer_ratio", ratio)
        if self.tighten_below is not None:
            self._keep("tighten_below", check_count("tighten_below", self.tighten_below, 1))
        if self.heads is not None:
            self._keep("heads", check_shares("heads", self.heads))
        self._write()


@dataclass(frozen=True, kw_only=True, eq=False)
class Check(Written):
    """Measuring the retained mass: changes no key of a plan.

    Attributes:
        held_out_rows: rows per segment, not used in selecting, on which the mass is measured.
        min_retained_mass: heads whose mean retained mass falls below this are computed again,
            dense; None: none are.

    Raises:
        InvalidConfig: a value is outside its range, or nothing is there to measure on.
    """

    held_out_rows: int = 0
    min_retained_mass: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        self._keep("held_out_rows", check_count("held_out_rows", self.held_out_rows, 0))
        if self.min_retained_mass is not None:
            least = check_share("min_retained_mass", self.min_retained_mass)
            self._keep("min_retained_mass", least)
            if not self.held_out_rows:
                raise InvalidConfig(
                    "min_retained_mass needs held-out rows to measure on; set held_out_rows=4 or "
                    "more"
                )
        self._write()


# Functions, since torch.compile of 2.13 calls no class that is a default, and 2.7 reads no value.
def default_ranking() -> Ranking:
    """Moments of the queries rank."""
    return QueryMoments()


def default_budget() -> Budget:
    """The middle layers and short segments lose less."""
    return Budget()


def default_check() -> Check:
    """Nothing is measured."""
    return Check()
