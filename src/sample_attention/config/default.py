"""What the user wants: one configuration space, of which both published algorithms are points.

| field            | symbol in paper | paper (v1) | mlsys (v3)   | default  | fast     | pooled   |
|------------------|-----------------|------------|--------------|----------|----------|----------|
| `coverage`       | alpha, alpha_c  | 0.95       | 0.95         | 0.945    | 0.85     | 0.95     |
| `head_coverage`  | -               | -          | -            | -        | -        | -        |
| `depth_contrast` | -               | 1          | 1            | 4        | 4        | 1        |
| `coverage_at`    | -               | -          | -            | 16384    | 16384    | -        |
| `slash_coverage` | alpha_s         | -          | 0.95         | -        | -        | -        |
| `segment`        | - (v3: one set) | whole call | whole call   | 128 rows | 128 rows | 128 rows |
| `row_stride`     | 1 / r_row       | 20 (5 %)   | -            | 4        | 4        | 8        |
| `chunk_tails`    | chunk_n         | -          | 2 x 128 rows | -        | -        | -        |
| `pool`           | -               | -          | -            | 128 rows | 128 rows | 32 rows  |
| `spread`         | -               | no         | no           | yes      | yes      | no       |
| `probes`         | -               | all        | all          | 2048     | 2048     | all      |
| `outliers`       | -               | -          | -            | 8        | 8        | -        |
| `runs`           | -               | -          | -            | 0.0625   | 0.0625   | -        |
| `key_block`      | blk             | 1          | 128          | 1        | 1        | 1        |
| `window`         | w = ceil(r_w S) | 8 % of Skv | -            | 128      | 128      | 256      |
| `dense_tail`     | bottom area     | 128        | -            | 64       | 64       | 64       |
| `dense_prefix`   | -               | 0          | 0            | 1024     | 1024     | 1024     |
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

from ..errors import InvalidConfig
from .checks import check_contrast, check_count, check_share, plain

WINDOW_ALIGNMENT = 128
"""Rows that share one left edge of the window when a plan has segments."""

CLASSES_PER_OCTAVE = 8
"""Within a segment ranks are compared by class: the exponent and three mantissa bits of fp32."""

LOWEST_OCTAVE = -31
"""Ranks below `2 ** LOWEST_OCTAVE` share the lowest class."""

MOST_HEAVY = 512
"""With `spread`, columns of more than this share of all ranks, 1 in 512, are heavy: all probed."""

SPREAD_SHARE = 0.625
"""Share of the variance term that ranks; all of it, right for normal queries, ranks no better."""

CENTRE_STRIDE = 16
"""With `spread`, the variance ranks keys relative to their mean, of one key in this many: what
moves all scores of a row alike is nothing to a softmax."""

LOWEST_RANK, HIGHEST_RANK = -128, 127
"""With `spread`, ranks 16 octaves and more below or above the first heavy one share a class."""

PEAK = 64
"""Columns of more than 1 in PEAK of an outlier row's mass are peaks; a power of two."""

RUN = 16
"""With `runs`, columns are taken along by aligned blocks of this many: a word of `peak_kernel`."""

MOST_OUTLIERS = 16
"""Largest `outliers`."""

LEAST_COVERAGE = 1e-3
"""Least share that depth leaves to a layer."""


@dataclass(frozen=True, kw_only=True)
class SampleAttentionConfig:
    """How keys are selected: sampling (stage 1), filtering (stage 2) and what is always kept.

    Attributes:
        coverage: share of the sampled mass that the selection keeps, in (0, 1]; 1 is dense.
        head_coverage: a share for each query head in place of `coverage`, below 1; needs segments.
        depth_contrast: how many times as much mass as the middle layers of a model the first and
            the last may lose, 1 to 64; `for_layer` says how. A call that does not say its layer
            has the `coverage` as it is.
        coverage_at: columns to choose from that give a segment the `coverage`; with n, fewer, it
            may lose `sqrt(n / coverage_at)` times as much. None: all segments have the same.
        slash_coverage: `coverage` of slashes (blocks at a constant distance); None: no slashes.
        segment: consecutive query rows, aligned to absolute positions, that share one selection
            per head; None: all rows of the call share one.
        row_stride: one query row in every `row_stride` is sampled exactly.
        chunk_tails: sample the last 128 rows of each of this many equal chunks instead of
            strided rows (v3); None: strided rows.
        pool: rank columns by mean queries of this many rows, so that the sampled rows only
            decide how many; None: the sampled rows rank as well.
        spread: rank by the mean and the variance of the queries of a segment; needs
            `pool=segment`.
        probes: columns at even distances that the sampled rows score, beside those of high rank;
            None: they score all. Needs `spread`.
        outliers: sampled rows of a segment, those least like the others, whose peaks are kept as
            well: a mean hides what a single row needs. Up to MOST_OUTLIERS; it needs `spread`.
        runs: a peak of more than this share of an outlier row's mass, 1 in PEAK or more, keeps its
            aligned block of RUN columns and those beside: text repeats in runs, and rows next to
            this one need columns next to it. Not around the first block. None: no runs.
        key_block: keys are kept in aligned blocks of this many; 1 is single keys.
        window: latest keys that every query keeps, itself included.
        window_ratio: window as a share of the key length; overrides `window`.
        residual: columns need to cover only what the window does not.
        dense_tail: last rows of the call that attend to every key; with segments, all segments
            that hold one of them: what a prompt asks for stands there, in few rows.
        dense_prefix: segments that end at or before this position attend to every key.
        dense_above: a segment that would keep more than this share of its selectable columns is
            computed dense.
        held_out: rows per segment, not used in selecting, on which the retained mass is measured.
        guard: heads whose mean retained mass on the held-out rows falls below this are computed
            again, dense; None: no guard.

    Raises:
        InvalidConfig: a value is outside its range, or values contradict each other.

    Source: arXiv 2406.15486, sections 3-4 (v1) and the MLSys 2025 version (v3).
    """

    coverage: float = 0.945
    head_coverage: tuple[float, ...] | None = None
    depth_contrast: float = 4
    coverage_at: int | None = 16384
    slash_coverage: float | None = None
    segment: int | None = 128
    row_stride: int = 4
    chunk_tails: int | None = None
    pool: int | None = 128
    spread: bool = True
    probes: int | None = 2048
    outliers: int = 8
    runs: float | None = 0.0625
    key_block: int = 1
    window: int = 128
    window_ratio: float | None = None
    residual: bool = True
    dense_tail: int = 64
    dense_prefix: int = 1024
    dense_above: float = 0.75
    held_out: int = 0
    guard: float | None = None

    def __post_init__(self) -> None:
        """Check ranges and combinations; numbers of other libraries become Python's own."""
        for name in _FIELDS:  # torch.compile of 2.7 traces no writing to __dict__
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in ("coverage", "slash_coverage", "dense_above", "window_ratio", "guard", "runs"):
            check_share(name, getattr(self, name))
        for name, lowest in _LOWEST.items():
            check_count(name, getattr(self, name), lowest)
        for name in ("residual", "spread"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidConfig(f"{name} must be True or False, got {getattr(self, name)!r}")
        check_contrast(self.depth_contrast)
        object.__setattr__(self, "head_coverage", _shares_of_heads(self.head_coverage))
        self._check_combinations()
        # Kept from the start: torch.compile reads one text where it would trace every number.
        pairs = [f'"{name}": {_literal(getattr(self, name))}' for name in _FIELDS]
        object.__setattr__(self, "_json", "{" + ", ".join(pairs) + "}")

    def _check_combinations(self) -> None:
        self._check_ranking()
        self._check_segments()
        if (self.chunk_tails is None) != (self.slash_coverage is None):
            raise InvalidConfig(
                "chunk_tails and slash_coverage belong together (the mlsys preset); "
                f"got chunk_tails={self.chunk_tails}, slash_coverage={self.slash_coverage}"
            )
        if self.chunk_tails is not None and self.segment is not None:
            raise InvalidConfig("chunk_tails selects once for the whole call; set segment=None")
        if self.key_block > 1 and self.chunk_tails is None:
            raise InvalidConfig("key_block > 1 needs chunk_tails (the mlsys preset)")
        if self.guard is not None and self.held_out == 0:
            raise InvalidConfig("guard needs held-out rows to measure on; set held_out=4 or more")
        if self.slash_coverage is not None and self.depth_contrast != 1:
            raise InvalidConfig(
                f"depth_contrast={self.depth_contrast} moves coverage and not slash_coverage="
                f"{self.slash_coverage}; set depth_contrast=1"
            )

    def _check_ranking(self) -> None:
        if self.spread and not (self.pool == self.segment and self._rows_share_a_window):
            raise InvalidConfig(
                f"spread needs pool=segment, of at most {WINDOW_ALIGNMENT} rows; "
                f"got pool={self.pool}, segment={self.segment}. Set both, or rank without spread: "
                'start from SampleAttentionConfig.preset("pooled"), or set spread=False, '
                "probes=None and outliers=0"
            )
        if not self.spread and (self.probes is not None or self.outliers):
            raise InvalidConfig(
                "probes and outliers need spread=True, which ranks the columns; got "
                f"probes={self.probes}, outliers={self.outliers}, spread=False. "
                "Set probes=None, outliers=0"
            )
        if self.outliers > MOST_OUTLIERS:
            raise InvalidConfig(f"outliers={self.outliers}; it must be at most {MOST_OUTLIERS}")
        if self.runs is not None and self.runs * PEAK < 1:
            raise InvalidConfig(f"runs={self.runs}; it must be 1/{PEAK}, what a peak is, or more")

    def _check_segments(self) -> None:
        if self.segment is None:
            for name in ("pool", "head_coverage", "coverage_at"):
                if getattr(self, name) is not None:
                    raise InvalidConfig(f"{name} needs segments; set segment=128 or {name}=None")
            return
        for name in ("row_stride", "pool"):
            value = getattr(self, name)
            if value is not None and self.segment % value:
                raise InvalidConfig(
                    f"{name}={value} must divide segment={self.segment}; "
                    f"choose a power of two such as 8 or 16"
                )
        if self.segment > WINDOW_ALIGNMENT and self.segment % WINDOW_ALIGNMENT:
            raise InvalidConfig(
                f"segment={self.segment} must be at most {WINDOW_ALIGNMENT} or a multiple of it"
            )
        if self.window < 1:
            raise InvalidConfig("a plan with segments needs window >= 1; set window=1 or more")

    @property
    def dense(self) -> bool:
        """Whether the thresholds ask for all of the mass, so that nothing can be dropped."""
        return (
            self.head_coverage is None and self.coverage == 1 and self.slash_coverage in (None, 1)
        )

    def for_layer(self, layer: int, layers: int) -> SampleAttentionConfig:
        """The configuration in one layer of a model, by its depth t from -1, the first, to 1.

            1 - coverage(t) = (1 - coverage) * depth_contrast ** (t² - mean of t² over the layers)

        The geometric mean of what layers may lose stays what `coverage` says. A table of heads has
        its own answer, and is left as it is.

        Args:
            layer: from 0; one beyond the last, as of a draft head, counts as the last.
            layers: of the model.
        """
        if self.depth_contrast == 1 or self.head_coverage is not None:
            return self
        return _at_depth(self, min(layer, layers - 1), layers)

    def coverage_of(self, num_heads: int) -> tuple[float, ...]:
        """The share of each query head.

        Raises:
            InvalidConfig: `head_coverage` is for another number of heads.
        """
        shares = self.head_coverage or (self.coverage,) * num_heads
        if len(shares) != num_heads:
            raise InvalidConfig(
                f"head_coverage has {len(shares)} shares, and the call {num_heads} query heads; "
                "give one for each"
            )
        return shares

    @property
    def window_alignment(self) -> int:
        """Rows that share one left edge of the window; 1: every row has its own."""
        return 1 if self.segment is None else min(self.segment, WINDOW_ALIGNMENT)

    @property
    def _rows_share_a_window(self) -> bool:
        return self.segment is not None and self.segment <= WINDOW_ALIGNMENT

    @property
    def tail_rows(self) -> int:
        """Rows of the dense tail that are dense one by one; with segments whole ones are."""
        return self.dense_tail if self.segment is None else 0

    def tail_from(self, kv_len: int) -> int:
        """Position from which on the rows of a sequence of `kv_len` keys attend to every key."""
        first = max(0, kv_len - self.dense_tail)
        if self.segment is None or not self.dense_tail:
            return first
        return first // self.segment * self.segment

    def window_for(self, kv_len: int) -> int:
        """The window in keys for a sequence of `kv_len` keys."""
        if self.window_ratio is not None:
            return math.ceil(self.window_ratio * kv_len)
        return self.window

    @classmethod
    def preset(cls, name: str, **overrides: object) -> SampleAttentionConfig:
        """The preset of that name, one of those in the table above, with fields replaced.

        Raises:
            InvalidConfig: there is no such preset, or an override is out of range.
        """
        if not isinstance(name, str) or name not in PRESETS:  # pyright: ignore[reportUnnecessaryIsInstance]
            names = ", ".join(sorted(PRESETS))
            raise InvalidConfig(f"unknown preset {name!r}; accepted: {names}")
        if not overrides:
            return PRESETS[name]
        try:
            return replace(PRESETS[name], **overrides)  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise InvalidConfig(f"{error}; see SampleAttentionConfig for the fields") from error

    def to_json(self) -> str:
        """All fields as one JSON object; `from_json` gives an equal configuration."""
        return self.__dict__["_json"]

    @classmethod
    def from_json(cls, text: str) -> SampleAttentionConfig:
        """The configuration that `to_json` wrote; fields that are left out have their defaults.

        Raises:
            InvalidConfig: not a JSON object, unknown fields, or a value out of range.
        """
        try:
            given = json.loads(text)
        except (TypeError, ValueError) as error:
            raise InvalidConfig(f"not JSON: {error}") from error
        if not isinstance(given, dict):
            raise InvalidConfig(f"accepted: a JSON object with fields as names, got {text!r}")
        unknown = sorted(set(given) - set(_FIELDS))
        if unknown:
            raise InvalidConfig(
                f"unknown fields {', '.join(unknown)}; accepted: {', '.join(_FIELDS)}"
            )
        return cls(**given)


@functools.lru_cache(maxsize=1024)  # decoding asks again in every layer
def _at_depth(config: SampleAttentionConfig, layer: int, layers: int) -> SampleAttentionConfig:
    deep = (2 * layer / (layers - 1) - 1) ** 2 if layers > 1 else 1.0
    mean = (layers + 1) / (3 * (layers - 1)) if layers > 1 else 1.0
    losing = (1 - config.coverage) * config.depth_contrast ** (deep - mean)
    return replace(config, coverage=max(1 - losing, LEAST_COVERAGE), depth_contrast=1)


def as_config(config: object) -> SampleAttentionConfig:
    """The configuration itself, or the preset of that name.

    Raises:
        InvalidConfig: neither a configuration nor the name of a preset.
    """
    if isinstance(config, SampleAttentionConfig):
        return config
    if not isinstance(config, str):
        raise InvalidConfig(
            "config must be a SampleAttentionConfig, the name of a preset "
            f"({', '.join(sorted(PRESETS))}) or, outside of torch.compile, a tuned configuration, "
            f"its path, or a selector; got {type(config)!r}"
        )
    return SampleAttentionConfig.preset(config)


_FIELDS = tuple(field.name for field in fields(SampleAttentionConfig))
_LOWEST = {
    "coverage_at": 1, "segment": 1, "row_stride": 1, "chunk_tails": 1, "pool": 1, "probes": 16,
    "outliers": 0, "key_block": 1, "window": 0, "dense_tail": 0, "dense_prefix": 0, "held_out": 0,
}  # fmt: skip


def _literal(value: float | bool | tuple[float, ...] | None) -> str:
    """A value in JSON. The json module would do, but torch.compile cannot trace it."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return "[" + ", ".join([_literal(part) for part in value]) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, int) else repr(float(value))


def _shares_of_heads(value: object) -> tuple[float, ...] | None:
    """`head_coverage` as it is kept, from a tuple, or a list as JSON has it."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or not value:
        raise InvalidConfig(f"head_coverage must be a share for each query head; got {value!r}")
    shares = tuple([cast("float", plain(share)) for share in cast("Sequence[object]", value)])
    for share in shares:
        check_share("head_coverage", share)
        if share == 1:
            raise InvalidConfig("head_coverage must be below 1; 0.999 keeps next to everything")
    return shares


PRESETS = {
    "default": SampleAttentionConfig(),
    "fast": SampleAttentionConfig(coverage=0.85),
    "pooled": SampleAttentionConfig(
        coverage=0.95, depth_contrast=1, coverage_at=None, row_stride=8, pool=32, spread=False,
        probes=None, outliers=0, runs=None, window=256,
    ),
    "paper": SampleAttentionConfig(
        coverage=0.95, depth_contrast=1, coverage_at=None, segment=None, row_stride=20, pool=None,
        spread=False, probes=None, outliers=0, runs=None, window_ratio=0.08, residual=False,
        dense_tail=128, dense_prefix=0,
    ),
    "mlsys": SampleAttentionConfig(
        coverage=0.95, depth_contrast=1, coverage_at=None, slash_coverage=0.95, segment=None,
        chunk_tails=2, pool=None, spread=False, probes=None, outliers=0, runs=None, key_block=128,
        window=0, residual=False, dense_tail=0, dense_prefix=0,
    ),
}  # fmt: skip
"""The named points of the space; the table above says what each is."""
