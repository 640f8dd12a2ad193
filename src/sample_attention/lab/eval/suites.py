"""Which cells are measured, the ones worth most first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..contenders import DENSE, Contender, parse_methods
from .tasks import BABILONG, QUOTING, RULER, TEXT, Task, parse_tasks

K = 1024


@dataclass(frozen=True)
class Stage:
    """All combinations of some lengths, tasks and methods.

    Attributes:
        lengths: tokens of the prompts.
        tasks: as `parse_tasks` takes them.
        methods: as `parse_methods` takes them.
        n: prompts of a task; of real text `texts`.
        texts: passages of real text.
    """

    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    n: int
    texts: int = 2


@dataclass(frozen=True)
class Suite:
    """A model and what is measured of it, in this order.

    Attributes:
        model: as `load_model` takes it.
        stages: what earlier ones measured, later ones skip.
    """

    model: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Cell:
    """One row to be: prompts of one task and length under one method."""

    length: int
    task: Task
    method: Contender
    n: int


OUR_METHODS = (DENSE, "default", "fast", "pooled", "paper", "mlsys")
RULES = ("default", "pooled", "paper", "mlsys")
"""Ours that differ at equal density: `fast` is `default` at another coverage."""

RIVALS = ("xattention", "flexprefill", "vertical_slash")
"""The nearest: their patterns follow the input, and they are what people use today."""

OTHERS = ("streaming_llm", "a_shape")
SPARSE = (*RULES, *RIVALS, *OTHERS)


def _at(methods: Sequence[str], *densities: float) -> tuple[str, ...]:
    return tuple(f"{method}:density={x}" for x in densities for method in methods)


EQUAL = _at((*RULES, *RIVALS), 0.08, 0.16)
FRONT = _at(SPARSE, 0.08, 0.16, 0.04, 0.32)
"""All methods at equal density."""

TELLING = ("needle", "niah_multikey_1", "niah_multikey_2", "niah_multivalue", "vt", "qa_1", "qa_2",
           "babilong_qa1")  # fmt: skip
"""Tasks that tell methods apart soonest: retrieval among look-alikes, and several hops."""

EVERYTHING = (*TEXT, *QUOTING, "needle", *RULER, *BABILONG)
SUITES = {
    "quick": Suite("smollm2-135m", (
        Stage((2 * K,), ("needle", "niah_multikey_1", "qa_1", "babilong_qa1", *TEXT),
              (DENSE, "default", "paper", "xattention"), 3, 1),
    )),
    "standard": Suite("qwen2.5-coder-1.5b", (
        Stage((32 * K, 8 * K), (*TEXT, *TELLING), (*OUR_METHODS, *RIVALS), 10),
        Stage((32 * K,), (*TEXT, *TELLING), EQUAL, 10),
        Stage((32 * K, 8 * K), EVERYTHING, OUR_METHODS, 10),
        Stage((32 * K,), (*TEXT, *TELLING), (*OTHERS, *FRONT), 10),
    )),
    "full": Suite("qwen2.5-coder-1.5b", (
        Stage((32 * K, 8 * K), EVERYTHING, (*OUR_METHODS, *RIVALS), 20, 4),
        Stage((32 * K, 8 * K), EVERYTHING, EQUAL, 20, 4),
        Stage((16 * K, 4 * K), EVERYTHING, (*OUR_METHODS, *RIVALS), 20, 4),
        Stage((64 * K, 128 * K), ("ppl_code", "needle", *RULER, *BABILONG), OUR_METHODS, 20, 4),
        Stage((32 * K, 16 * K, 8 * K, 4 * K), EVERYTHING, (*OTHERS, *FRONT), 20, 4),
    )),
}  # fmt: skip


def narrowed(
    suite: Suite, *, lengths: Sequence[int] = (), tasks: Sequence[str] = (),
    methods: Sequence[str] = (), n: int | None = None,
) -> Suite:  # fmt: skip
    """The suite with what is given in the place of its own, in every stage."""
    stages = [
        replace(
            stage,
            lengths=tuple(lengths) or stage.lengths,
            tasks=tuple(tasks) or stage.tasks,
            methods=tuple(methods) or stage.methods,
            n=n or stage.n,
            texts=n or stage.texts,
        )
        for stage in suite.stages
    ]
    return replace(suite, stages=tuple(dict.fromkeys(stages)))


def cells_of(suite: Suite) -> list[Cell]:
    """The cells of a suite, each once, in their order; dense attention leads each task.

    Raises:
        InvalidInput: a task that there is not.
        InvalidConfig: a method that there is not.
    """
    cells: dict[Cell, None] = {}
    for stage in suite.stages:
        methods = parse_methods(stage.methods)
        for length in stage.lengths:
            for task in parse_tasks(stage.tasks):
                n = stage.texts if task.name in (*TEXT, *QUOTING) else stage.n
                cells.update(dict.fromkeys(Cell(length, task, m, n) for m in methods))
    return list(cells)
