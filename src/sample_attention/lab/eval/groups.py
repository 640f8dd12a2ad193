"""Rows by model, length and task, each next to dense attention on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..contenders import DENSE, DENSITY, TUNED
from ..records import Record
from ..statistics import Estimate, paired_difference, paired_ratio

Pairs = dict[str, tuple[Record, Record]]
"""By task the rows of a method and of dense attention."""


@dataclass(frozen=True)
class Group:
    """What was measured of one model at one length under the same conditions.

    Attributes:
        model: as records state it, with its YaRN factor if it has one.
        length: tokens of the prompts.
        tasks: rows by task, then by the label of the method, dense attention among them; of
            several the one of most prompts.
        dense: rows of dense attention by task and number of prompts.
    """

    model: str
    length: int
    tasks: dict[str, dict[str, Record]]
    dense: dict[tuple[str, int], Record] = field(default_factory=dict[tuple[str, int], Record])

    def add(self, row: Record, label: str) -> None:
        """Take in a row."""
        task, n = str(row["task"]), int(row["n"])
        known = self.tasks.setdefault(task, {}).get(label)
        if known is None or n >= known["n"]:
            self.tasks[task][label] = row
        if label == DENSE:
            self.dense[task, n] = row

    @property
    def methods(self) -> list[str]:
        """Labels of all methods, as they first appear."""
        return list(dict.fromkeys(label for rows in self.tasks.values() for label in rows))

    def row(self, task: str, method: str) -> Record | None:
        """A row that was measured; None where the cell was skipped or not run."""
        row = self.tasks[task].get(method)
        return None if row is None or "skipped" in row else row

    def dense_of(self, task: str, row: Record) -> Record | None:
        """What dense attention made of the prompts of a row; None where that was not measured."""
        return self.dense.get((task, row["n"]))

    def pairs(self, method: str) -> Pairs:
        """By task with answers, the rows of a method and of dense attention, where both exist."""
        return {task: both for task, both in self._both(method).items() if "kl" not in both[0]}

    def texts(self, method: str) -> Pairs:
        """The same, by real text."""
        return {task: both for task, both in self._both(method).items() if "kl" in both[0]}

    def _both(self, method: str) -> Pairs:
        found: Pairs = {}
        for task in self.tasks:
            row = self.row(task, method)
            dense = row and self.dense_of(task, row)
            if row is not None and dense is not None:
                found[task] = row, dense
        return found

    def skipped(self) -> dict[str, str]:
        """Tasks that no other method ran, with the reason."""
        return {
            task: str(row["skipped"])
            for task, rows in self.tasks.items()
            for row in rows.values()
            if "skipped" in row
        }


def groups_of(rows: Sequence[Record]) -> list[Group]:
    """The rows by model and length, longest first; other conditions make other groups."""
    found: dict[tuple[object, ...], Group] = {}
    for row in rows:
        yarn = row.get("yarn")
        model = str(row["model"]) if yarn is None else f"{row['model']} (YaRN {yarn:g})"
        key = (model, row["length"], row.get("dtype"), row.get("seed"), row.get("routed"))
        group = found.setdefault(key, Group(model, row["length"], {}))
        group.add(row, label_of(row))
    return sorted(found.values(), key=lambda group: (group.model, -group.length))


def label_of(row: Record) -> str:
    """Name and setting of the method of a row."""
    return f"{row['method']}:{row['setting']}" if row["setting"] else str(row["method"])


def turned_to(label: str) -> str:
    """The setting `density=VALUE` of a method that has no other; empty: it is as it is."""
    name, _, setting = label.partition(":")
    if name == TUNED:
        setting = setting.partition(",")[2]
    return setting if setting.startswith(f"{DENSITY}=") and "," not in setting else ""


def most_in_common(pairs: Mapping[str, Pairs]) -> tuple[list[str], list[str]]:
    """Methods and tasks that all of these methods ran, as many of both as there are together."""
    if not pairs:
        return [], []
    found: list[tuple[list[str], list[str]]] = []
    for tasks in (*pairs.values(), set[str].intersection(*map(set, pairs.values()))):
        found.append(([x for x, ran in pairs.items() if set(tasks) <= ran.keys()], sorted(tasks)))
    return max(found, key=lambda both: (len(both[0]) * len(both[1]), len(both[0])))


def difference(row: Record, dense: Record, name: str = "scores") -> Estimate:
    """What a method changes, prompt by prompt: of `scores` or `logprobs`."""
    return paired_difference(row[name], dense[name])


def share_of_dense(pairs: Sequence[tuple[Record, Record]]) -> Estimate | None:
    """The mean score of a method over tasks, over that of dense attention; None without tasks."""
    if not pairs:
        return None
    return paired_ratio(
        [row["scores"] for row, _ in pairs], [dense["scores"] for _, dense in pairs]
    )
