"""Cells to rows: the same prompts for every method, dense first, what is known left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...errors import PromptTooLong
from ..contenders import DENSE, Contender
from ..models import LoadedModel
from ..reading import Computed, Measurement, compare_text, text_logits
from ..records import EVAL, Row, origin
from ..statistics import mean_interval
from .measure import measure_answer, turned_to_density
from .prompts import Sample
from .suites import Cell
from .tasks.texts import TextTask


@dataclass(frozen=True)
class RunSettings:
    """How cells are measured.

    Attributes:
        model_name: as records state it.
        yarn: factor by which the context of the model was stretched; None: as it was trained.
        seed: of the prompts.
        routed: short prompts run dense, as the policy decides; else all run sparse.
        held_out: rows per segment on which retained mass is measured; 0: it is not.
        minutes: no cell is begun after these; None: all are.
        skip_below: tasks that dense attention scores lower on tell nothing: no other method runs.
    """

    model_name: str
    yarn: float | None = None
    seed: int = 0
    routed: bool = False
    held_out: int = 0
    minutes: float | None = None
    skip_below: float = 0.3


def pending_cells(
    loaded: LoadedModel, cells: Sequence[Cell], settings: RunSettings, known: Sequence[Row]
) -> list[Cell]:
    """The cells whose rows are not known, in their order, dense attention before its rivals.

    Raises:
        PromptTooLong: a length beyond the context of the model.
    """
    longest = max((cell.length for cell in cells), default=0)
    if longest > loaded.context_length:
        raise PromptTooLong(
            f"{longest} tokens: {loaded.name} accepts {loaded.context_length}; choose shorter "
            "lengths, a model with a longer context, or stretch it with --yarn"
        )
    measured = {EVAL.identity_of(row) for row in known}
    wanted = dict.fromkeys(part for cell in cells for part in (_dense(cell), cell))
    return [x for x in wanted if EVAL.identity_of(_shared(loaded, settings, x)) not in measured]


def measure_cells(
    loaded: LoadedModel, cells: Sequence[Cell], settings: RunSettings, known: Sequence[Row] = (),
    on_prompt: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:  # fmt: skip
    """Measure cells in their order.

    Args:
        loaded: the model.
        cells: as `pending_cells` lists them.
        settings: how.
        known: rows of earlier runs, for what they say of dense attention.
        on_prompt: called after every prompt, with the cell.

    Yields:
        A row as soon as its cell is measured; one that names the reason where it is skipped.

    Raises:
        InvalidInput: prompts of a task cannot be made.
    """
    run = _Run(loaded, settings, {EVAL.identity_of(row): row for row in known}, on_prompt)
    provenance = origin(loaded.model.device, settings.seed)
    deadline = None if settings.minutes is None else time.monotonic() + 60 * settings.minutes
    for cell in cells:
        if deadline is not None and time.monotonic() > deadline:
            return
        yield {**run.row_of(cell), **provenance}


@dataclass
class _Run:
    """The state of a run: known rows, and the prompts of the task at hand."""

    loaded: LoadedModel
    settings: RunSettings
    known: dict[str, Row]
    on_prompt: Callable[[str], None]
    prompts: _Prompts = field(init=False)

    def __post_init__(self) -> None:
        self.prompts = _Prompts(self.loaded, self.settings)

    def row_of(self, cell: Cell) -> Row:
        row = _shared(self.loaded, self.settings, cell)
        reason = self._reason_to_skip(cell)
        row |= _skipped(reason) if reason else self._measured(cell)
        self.known[EVAL.identity_of(row)] = row
        return row

    def _reason_to_skip(self, cell: Cell) -> str | None:
        if cell.method.name == DENSE or isinstance(cell.task, TextTask):
            return None
        dense = self.known[EVAL.identity_of(_shared(self.loaded, self.settings, _dense(cell)))]
        score: Any = dense["score"]
        if score >= self.settings.skip_below:
            return None
        return f"dense attention scores {score:.2f}, below {self.settings.skip_below:g}"

    def _measured(self, cell: Cell) -> Row:
        label = f"{cell.length} {cell.task.name} {cell.method.label}"
        method = self.prompts.method_of(cell)
        measured: list[Measurement] = []
        for one in self.prompts.measurements(cell, method):
            measured.append(one)
            self.on_prompt(label)
        row = _values(measured, self.prompts.depths(cell))
        return row if method.density is None else {**row, "turned": method.recorded}


@dataclass
class _Prompts:
    """Prompts of the last task and length, and the dense logits of its passages."""

    loaded: LoadedModel
    settings: RunSettings
    key: tuple[object, ...] = ()
    samples: list[Sample] = field(default_factory=lambda: [])
    passages: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=lambda: [])

    def measurements(self, cell: Cell, method: Contender) -> Iterator[Measurement]:
        """One per prompt."""
        self._make(cell)
        routed = self.settings.routed
        for sample in self.samples:
            yield measure_answer(self.loaded, sample, method, routed=routed)
        for ids, dense in self.passages:
            if method.name == DENSE:
                yield compare_text(ids, (dense, Computed()), dense)
            else:
                read = text_logits(self.loaded, ids, method, routed=routed)
                yield compare_text(ids, read, dense)

    def method_of(self, cell: Cell) -> Contender:
        """The method, turned on the first prompt of the cell where it names a density."""
        self._make(cell)
        first = self.samples[0].token_ids if self.samples else self.passages[0][0]
        method = cell.method.measuring(self.settings.held_out)
        return turned_to_density(self.loaded, first, method, routed=self.settings.routed)

    def depths(self, cell: Cell) -> list[float] | None:
        """Where the answers stand; None where that is not one place."""
        self._make(cell)
        found = [x.depth for x in self.samples if x.depth is not None]
        return found if len(found) == len(self.samples) else None

    def _make(self, cell: Cell) -> None:
        key = cell.length, cell.task, cell.n
        if key == self.key:
            return
        self.samples, self.passages, self.key = [], [], ()  # frees memory before more is taken
        wanted = self.loaded.tokenizer, cell.length, cell.n, self.settings.seed
        if isinstance(cell.task, TextTask):
            for ids in cell.task.passages(*wanted):
                logits, _ = text_logits(self.loaded, ids, Contender(DENSE))
                self.passages.append((ids, logits))
        else:
            self.samples = cell.task.samples(*wanted)
        self.key = key


def _dense(cell: Cell) -> Cell:
    return Cell(cell.length, cell.task, Contender(DENSE), cell.n)


def _shared(loaded: LoadedModel, settings: RunSettings, cell: Cell) -> Row:
    """What identifies the row of a cell."""
    method = cell.method.measuring(settings.held_out)
    return {
        "model": settings.model_name, "yarn": settings.yarn,
        "dtype": str(loaded.model.dtype).removeprefix("torch."), "length": cell.length,
        "task": cell.task.name, "n_wanted": cell.n, "method": method.name,
        "setting": method.setting, "config": method.recorded, "seed": settings.seed,
        "routed": settings.routed,
    }  # fmt: skip


def _skipped(reason: str) -> Row:
    names = ("score", "answer_logprob", "ci95", "density", "retained_mass_mean",
             "retained_mass_p5", "retained_mass_min")  # fmt: skip
    return {"n": 0, **dict.fromkeys(names), "skipped": reason}


def _values(measured: Sequence[Measurement], depths: list[float] | None) -> Row:
    """Means, and the values of every prompt, from which differences between methods are paired."""
    scores, computed = [x.score for x in measured], [x.computed for x in measured]
    estimate = mean_interval(scores)
    row: Row = {
        "n": len(measured), "score": estimate.mean,
        "answer_logprob": _mean([x.answer_logprob for x in measured]),
        "ci95": [estimate.low, estimate.high], "density": _mean([x.density for x in computed]),
        "retained_mass_mean": _mean([x.mass_mean for x in computed]),
        "retained_mass_p5": _mean([x.mass_p5 for x in computed]),
        "retained_mass_min": min((m for x in computed if (m := x.mass_min) is not None),
                                 default=None),
        "scores": scores, "logprobs": [x.answer_logprob for x in measured],
        "densities": [x.density for x in computed],
    }  # fmt: skip
    if depths is not None:
        row["depths"] = depths
    if measured[0].kl is not None:
        row["kl"] = _mean([x.kl for x in measured])
        row["kls"] = [x.kl for x in measured]
        row["agreement"] = _mean([x.agreement for x in measured])
    return row


def _mean(values: Sequence[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return sum(known) / len(known) if known else None
