"""The tasks by name: generated ones, real text to predict, and files of public benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ....errors import InvalidInput
from ..prompts import Sample
from .aggregation import AGGREGATION_TASKS
from .babilong import BABILONG_TASKS
from .infinitebench import InfiniteBenchTask
from .longbench import LongBenchTask
from .questions import QUESTION_TASKS
from .retrieval import RETRIEVAL_TASKS
from .texts import QUOTING_TASKS, TEXT_TASKS, TextTask
from .tracking import TRACKING_TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AnswerTask(Protocol):
    """Prompts with right answers."""

    @property
    def name(self) -> str:
        """As records state it."""
        ...

    def samples(
        self, tokenizer: PreTrainedTokenizerBase, length: int, n: int, seed: int
    ) -> list[Sample]:
        """At most `n` samples of at most `length` tokens, the same for a seed."""
        ...


Task = AnswerTask | TextTask

GENERATED_TASKS = (
    *RETRIEVAL_TASKS, *TRACKING_TASKS, *AGGREGATION_TASKS, *QUESTION_TASKS, *BABILONG_TASKS
)  # fmt: skip
RULER = tuple(task.name for task in GENERATED_TASKS[1:14])
"""The thirteen tasks of RULER."""

BABILONG = tuple(task.name for task in BABILONG_TASKS)
TEXT = tuple(task.name for task in TEXT_TASKS)
QUOTING = tuple(task.name for task in QUOTING_TASKS)

_NAMED: dict[str, Task] = {
    task.name: task for task in (*GENERATED_TASKS, *TEXT_TASKS, *QUOTING_TASKS)
}
_GROUPS = {"ruler": RULER, "babilong": BABILONG, "ppl": TEXT, "quotes": QUOTING}
_FILES = {"longbench": LongBenchTask, "infinitebench": InfiniteBenchTask}


def parse_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of names, groups (`ruler`, `babilong`, `ppl`, `quotes`) and files.

    Raises:
        InvalidInput: there is no such task or file.
    """
    return [task for name in names for task in _parse(name)]


def _parse(name: str) -> list[Task]:
    kind, separator, path = name.partition(":")
    if separator and kind in _FILES:
        if not Path(path).is_file():
            raise InvalidInput(f"task {name}: there is no file {path}")
        return [_FILES[kind](Path(path))]
    chosen = _GROUPS.get(name, (name,))
    if not set(chosen) <= set(_NAMED):
        raise InvalidInput(
            f"there is no task '{name}'; accepted: {', '.join((*_GROUPS, *_NAMED))}, "
            f"{' and '.join(f'{x}:FILE' for x in _FILES)}"
        )
    return [_NAMED[task] for task in chosen]
