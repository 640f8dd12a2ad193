"""A model read on real text: dense once, then by every configuration that the search asks for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...config import Interval, QueryMoments, SampleAttentionConfig, Tuned
from ...errors import InvalidInput, PromptTooLong
from ..contenders import DENSE, Contender
from ..models import LoadedModel
from ..models.text import TEXTS
from ..reading import compare_text, measured_tokens, text_logits, with_quotations
from ..records import Provenance, Row
from .heads import HeadProfile, Table, profile_heads
from .passages import Passage, split_passages
from .search import SHAPES, ErrorBudget, Reading, Search, Trial

KL_ROWS = 1024
"""The last rows of a passage, at most a quarter of it, on which KL to dense is measured.

In half of them the passage quotes itself: in plain text next tokens follow mostly from what stands
near, and heads that find what stands far back would seem to be worth nothing."""

HELD_OUT = 4
"""Rows per segment on which retained mass is measured."""

FIELD_DIGITS = 6


@dataclass(frozen=True)
class TuneOptions:
    """How a model is tuned.

    Attributes:
        lengths: tokens of the requests, rising; each begins an interval, the first at 0.
        requests: per length, half of them to search on and half to validate on; even, and at
            least 4, since one request says nothing of its spread.
        texts: kinds of `reference_text`, which take turns.
        budget: what is allowed.
        base: gives the fields that are not searched.
        minutes: of the whole search, shared by the lengths; None: as long as it takes.
        by_head: every head has its own coverage; else one is for all.

    Raises:
        InvalidInput: lengths that do not rise, requests that cannot be halved, unknown texts, or a
            base whose shape the search does not know.
    """

    lengths: tuple[int, ...]
    requests: int = 8
    texts: tuple[str, ...] = ("prose", "code")
    budget: ErrorBudget = field(default_factory=ErrorBudget)
    base: SampleAttentionConfig = field(default_factory=SampleAttentionConfig)
    minutes: float | None = None
    by_head: bool = True

    def __post_init__(self) -> None:
        """Check what a search needs, before a model is loaded."""
        if not self.lengths or self.lengths[0] < 8 or [*self.lengths] != sorted({*self.lengths}):
            raise InvalidInput(f"lengths are {self.lengths}; accepted: rising, from 8 tokens on")
        if self.requests < 4 or self.requests % 2:
            raise InvalidInput(f"requests is {self.requests}; accepted: 4, 6, 8 and so on")
        if not self.texts or not {*self.texts} <= {*TEXTS}:
            raise InvalidInput(f"texts are {self.texts}; accepted: {', '.join(TEXTS)}")
        self._check_base()

    def _check_base(self) -> None:
        base, segments = self.base, SHAPES["segment"]
        ours = isinstance(base, SampleAttentionConfig)  # pyright: ignore[reportUnnecessaryIsInstance]
        moments = ours and isinstance(base.ranking, QueryMoments) and base.ranking.sampled_keys
        if not (moments and base.segment in segments and base.sample_stride <= segments[0]):
            raise InvalidInput(
                f"a search cannot start from {base!r}; accepted: a SampleAttentionConfig with "
                "QueryMoments and a number of sampled_keys, a segment of "
                f"{', '.join(map(str, segments))} rows, and a sample_stride up to {segments[0]}"
            )


def tune(
    loaded: LoadedModel, options: TuneOptions, model_name: str,
    on_reading: Callable[[str], None] = lambda _: None,
) -> Tuned:  # fmt: skip
    """Find the cheapest configuration within the budget for each length.

    With `by_head` every head has its own coverage, by what it is worth to the model
    (`profile_heads`); the search moves all of them together, named by the one coverage for all
    heads that computes as much. A configuration is chosen on some passages; on the others its
    coverage rises until it keeps the budget there too. What both gave is in `measured`. Where
    nothing cheaper than dense attention keeps the budget, the interval is dense.

    Args:
        loaded: the model; its attention runs sparse at every length while it is measured.
        options: how.
        model_name: as the file states it.
        on_reading: called after every prefill of the search, with a word on it.

    Raises:
        PromptTooLong: a length beyond the context of the model.
        InvalidInput: a text is too short.
        UnsupportedAttention: heads of this model cannot be told apart; see `profile_heads`.
    """
    if options.lengths[-1] > loaded.context_length:
        raise PromptTooLong(
            f"{options.lengths[-1]} tokens: {loaded.name} accepts {loaded.context_length}; choose "
            "shorter lengths or a model with a longer context"
        )
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    intervals, rows = list[Interval](), list[Row]()
    for i, length in enumerate(options.lengths):
        now = time.monotonic()
        deadline = None if end is None else now + (end - now) / (len(options.lengths) - i)
        best, table, row = _tune_length(loaded, options, length, deadline, on_reading)
        intervals.append(Interval(length if intervals else 0, best, table))
        rows.append(row)
    provenance = Provenance.collect(loaded.model.device).as_row()
    return Tuned(model_name, tuple(intervals), tuple(rows), provenance)


def _tune_length(
    loaded: LoadedModel, options: TuneOptions, length: int, deadline: float | None,
    on_reading: Callable[[str], None],
) -> tuple[SampleAttentionConfig, Table | None, Row]:  # fmt: skip
    half, rows = options.requests // 2, min(KL_ROWS, measured_tokens(length))

    def say(done: str) -> None:
        on_reading(f"{length:,} tokens, {done}")

    def search_on(passages: Sequence[Passage], deadline: float | None = None) -> Search:
        read = _Profile(loaded, passages, heads).read
        return Search(read, half, length, options.budget, deadline, say)

    chosen, others = (
        [with_quotations(passage, rows // 2) for passage in part]
        for part in split_passages(loaded.tokenizer, options.texts, length, half, rows)
    )
    heads = None
    if options.by_head:
        heads = profile_heads(loaded, chosen, options.base, rows, lambda: say("pricing heads"))
    searched, unseen = search_on(chosen, deadline), search_on(others)
    finished = searched.run(options.base)
    unseen.validate(searched.best.config)
    best = unseen.best.config
    row: Row = {
        "length": length, "requests": half, "texts": list(options.texts),
        "kl_rows": rows, "held_out": HELD_OUT,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "max_kl": options.budget.max_kl, "min_mass": options.budget.min_mass,
        "config": json.loads(best.to_json()), "trials": searched.trials,
        "finished": finished,
        "searched": _rounded(searched.best), "validated": _rounded(unseen.best),
    }  # fmt: skip
    return best, _table(heads, best), row


class _Profile:
    """Passages of one length, and what dense attention makes of them."""

    def __init__(
        self, loaded: LoadedModel, passages: Sequence[Passage], heads: HeadProfile | None
    ) -> None:
        self._loaded, self._passages, self._heads = loaded, passages, heads
        self._dense: dict[int, Tensor] = {}

    def read(self, config: SampleAttentionConfig, index: int) -> Reading:
        """The results of a configuration on one passage."""
        passage = self._passages[index]
        if index not in self._dense:
            self._dense[index] = _last_rows(
                text_logits(self._loaded, passage, Contender(DENSE))[0]
            ).clone()  # the other rows need not stay in memory
        rule = Tuned("", (Interval(0, config, _table(self._heads, config)),))
        method = Contender("tuned", config=rule).measuring(HELD_OUT)
        logits, computed = text_logits(self._loaded, passage, method)
        measured = compare_text(passage, (_last_rows(logits), computed), self._dense[index])
        mass = 1.0 if computed.mass_mean is None else computed.mass_mean
        return Reading(computed.density, measured.kl or 0.0, mass)


def _table(heads: HeadProfile | None, config: SampleAttentionConfig) -> Table | None:
    return None if heads is None or config.dense else heads.table(config.coverage)


def _last_rows(logits: Tensor) -> Tensor:
    return logits[-KL_ROWS:]


def _rounded(trial: Trial) -> dict[str, float]:
    reading = trial.mean
    fields = {
        "coverage": trial.config.coverage, "cost": trial.cost, "density": reading.density,
        "sampling": trial.sampling, "kl": reading.kl, "kl_bound": trial.kl_bound,
        "retained_mass": reading.mass, "retained_mass_bound": trial.mass_bound,
    }  # fmt: skip
    return {name: round(value, FIELD_DIGITS) for name, value in fields.items()}
