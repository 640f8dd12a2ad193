"""Rows as tables: our default at a glance, methods over all tasks, every task, and real text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from ..contenders import DENSE, TUNED
from ..records import Record, RecordTable, machine_of
from ..statistics import Estimate
from .groups import Group, Pairs, difference, groups_of, most_in_common, share_of_dense, turned_to
from .tasks import QUOTING, TEXT

NONE = "–"
OUR_PRESET = "default"
METHODS_PER_TABLE = 6
"""Columns of a table of tasks; more methods make more tables."""


def evaluation_tables(rows: Sequence[Record]) -> list[RecordTable]:
    """All tables of the rows: the summary, then those of each model and length."""
    return [*summary_tables(rows), *model_tables(rows)]


def summary_tables(rows: Sequence[Record]) -> list[RecordTable]:
    """Our configurations next to dense attention, and methods at equal density."""
    groups = groups_of(rows)
    made = [_overview_table(groups)]
    made += [_front_table(group, at) for group in groups for at in _densities(group)]
    return [table for table in made if table.lines]


def model_tables(rows: Sequence[Record]) -> list[RecordTable]:
    """Methods over all tasks, every task, and real text, by model and length."""
    made: list[RecordTable] = []
    for group in groups_of(rows):
        made += [_methods_table(group), *_tasks_tables(group), _text_table(group)]
    return [table for table in made if table.lines]


def skipped_notes(rows: Sequence[Record]) -> list[str]:
    """One line per task that was left out because dense attention fails on it."""
    return [
        f"{group.model}, {group.length:,} tokens, {task}: {reason}"
        for group in groups_of(rows)
        for task, reason in group.skipped().items()
    ]


def _overview_table(groups: Sequence[Group]) -> RecordTable:
    """Our default and tuned configurations next to dense attention, by model and length."""
    lines: list[tuple[str, ...]] = []
    for group in groups:
        ours = [x for x in group.methods if x == OUR_PRESET or _is_tuned(x)]
        for method in ours:
            pairs, texts = group.pairs(method), group.texts(method)
            if pairs or texts:
                head = group.model, f"{group.length:,}", method.partition(":")[0]
                lines.append((*head, *_at_a_glance(pairs, texts)))
    headers = ("model", "tokens", "method", "dtype", "tasks", "prompts", "density",
               "% of dense (95 % CI)", "perplexity of prose, code", "KL of prose, code",
               "KL where they quote")  # fmt: skip
    return RecordTable(f"{OUR_PRESET} and {TUNED} against dense attention", headers, tuple(lines))


def _is_tuned(label: str) -> bool:
    """Whether a method is a tuned configuration as it was written."""
    return label.startswith(TUNED) and not turned_to(label)


def _at_a_glance(pairs: Pairs, texts: Pairs) -> tuple[str, ...]:
    rows = [row for row, _ in (*pairs.values(), *texts.values())]
    return (
        str(rows[0].get("dtype")), str(len(pairs)), str(sum(row["n"] for row, _ in pairs.values())),
        f"{mean(row['density'] for row in rows):.3f}", _percent(share_of_dense([*pairs.values()])),
        ", ".join(f"{_perplexity_change(*texts[x]):+.2f} %" for x in TEXT if x in texts) or NONE,
        *(", ".join(f"{texts[x][0]['kl']:.4f}" for x in names if x in texts) or NONE
          for names in (TEXT, QUOTING)),
    )  # fmt: skip


def _densities(group: Group) -> list[str]:
    """The densities that several methods were turned to, as their labels have them."""
    densities = [turned_to(label) for label in group.methods if group.pairs(label)]
    return sorted({x for x in densities if x and densities.count(x) > 1})


def _front_table(group: Group, at: str) -> RecordTable:
    """Methods at equal density, on tasks that all of them ran."""
    pairs = {x: group.pairs(x) for x in group.methods if turned_to(x) == at and group.pairs(x)}
    methods, tasks = most_in_common(pairs)
    lines: list[tuple[str, ...]] = []
    for method in methods:
        of_method = pairs[method]
        ours = [of_method[task][0] for task in tasks]
        lines.append((
            method.partition(":")[0], f"{mean(row['density'] for row in ours):.3f}",
            f"{mean(row['score'] for row in ours):.3f}",
            _percent(share_of_dense([of_method[task] for task in tasks])),
            f"{mean(difference(*of_method[task], 'logprobs').mean for task in tasks):+.3f}",
        ))  # fmt: skip
    headers = ("method", "density", "score", "% of dense (95 % CI)", "Δ log-probability")
    prompts = sum(pairs[methods[0]][task][0]["n"] for task in tasks)
    what = f"Turned to a {at.replace('=', ' of ')}, {prompts} prompts of {', '.join(tasks)}"
    if fewer := [x.partition(":")[0] for x in pairs if x not in methods]:
        what += f" (not all of them: {', '.join(fewer)})"
    return RecordTable(_title(what, group), headers, tuple(lines))


def _methods_table(group: Group) -> RecordTable:
    """Over the tasks that a method and dense attention have both run."""
    lines: list[tuple[str, ...]] = []
    for method in group.methods:
        pairs = group.pairs(method)
        if method == DENSE or not pairs:
            continue
        tasks = {name: share_of_dense([pair]) for name, pair in pairs.items()}
        known = {name: share.mean for name, share in tasks.items() if share is not None}
        worst = min(known, key=known.__getitem__) if known else NONE
        ours, dense = [a for a, _ in pairs.values()], [b for _, b in pairs.values()]
        lines.append((
            method, str(len(pairs)), str(sum(row["n"] for row in ours)),
            f"{mean(row['density'] for row in ours):.3f}", _mass(ours),
            f"{mean(row['score'] for row in dense):.3f}",
            f"{mean(row['score'] for row in ours):.3f}",
            _percent(share_of_dense([*pairs.values()])),
            f"{worst} {_percent(tasks.get(worst))}",
            f"{mean(difference(a, b, 'logprobs').mean for a, b in pairs.values()):+.3f}",
        ))  # fmt: skip
    headers = ("method", "tasks", "prompts", "density", "retained mass", "dense score", "score",
               "% of dense (95 % CI)", "worst task", "Δ log-probability")  # fmt: skip
    return RecordTable(_title("All tasks", group), headers, tuple(lines))


def _tasks_tables(group: Group) -> list[RecordTable]:
    methods = [method for method in group.methods if method != DENSE and group.pairs(method)]
    parts = range(0, max(1, len(methods)), METHODS_PER_TABLE)  # dense attention alone is a table
    return [_tasks_table(group, methods[i : i + METHODS_PER_TABLE]) for i in parts]


def _tasks_table(group: Group, methods: Sequence[str]) -> RecordTable:
    lines: list[tuple[str, ...]] = []
    for task in group.tasks:
        dense = group.row(task, DENSE)
        if dense is not None and "kl" not in dense:
            cells = [_task_cell(group, task, method) for method in methods]
            lines.append((task, str(dense["n"]), f"{dense['score']:.2f}", *cells))
    headers = ("task", "n", DENSE, *(f"{method} (Δ)" for method in methods))
    return RecordTable(_title("Every task", group), headers, tuple(lines))


def _task_cell(group: Group, task: str, method: str) -> str:
    """The score, and what it is more or less than that of dense attention on the same prompts."""
    row = group.row(task, method)
    if row is None:
        return NONE
    dense = group.dense_of(task, row)
    if dense is None:
        return f"{row['score']:.2f}"
    change = difference(row, dense)
    if change.low == change.high == 0:
        return f"{row['score']:.2f} (0)"
    return f"{row['score']:.2f} ({change.mean:+.2f}, {change.low:+.2f} to {change.high:+.2f})"


def _text_table(group: Group) -> RecordTable:
    lines: list[tuple[str, ...]] = []
    for task in group.tasks:
        for method in group.methods:
            row = group.row(task, method)
            dense = row and group.dense_of(task, row)
            if row is not None and dense is not None and "kl" in row:
                lines.append((
                    task, method, str(row["n"]), f"{row['density']:.3f}", _mass([row]),
                    f"{math.exp(-row['answer_logprob']):.3f}",
                    f"{_perplexity_change(row, dense):+.2f} %",
                    f"{row['kl']:.4f}", f"{100 * row['agreement']:.1f} %",
                ))  # fmt: skip
    headers = ("text", "method", "n", "density", "retained mass", "perplexity", "against dense",
               "KL (nats)", "same next token")  # fmt: skip
    return RecordTable(_title("Real text", group), headers, tuple(lines))


def _perplexity_change(row: Record, dense: Record) -> float:
    """Perplexity over that of dense attention, minus one, in percent."""
    return 100 * math.expm1(dense["answer_logprob"] - row["answer_logprob"])


def _title(what: str, group: Group) -> str:
    rows = [row for rows in group.tasks.values() for row in rows.values()]
    machines = dict.fromkeys(f"{machine_of(row)}, {row.get('dtype')}" for row in rows)
    return f"{what}: {group.model}, {group.length:,} tokens ({'; '.join(machines)})"


def _mass(rows: Sequence[Record]) -> str:
    known = [x for row in rows if (x := row.get("retained_mass_mean")) is not None]
    return f"{mean(known):.3f}" if known else NONE


def _percent(share: Estimate | None) -> str:
    if share is None:
        return NONE
    low, high = 100 * share.low, 100 * share.high
    return f"{100 * share.mean:.1f} ({low:.1f} to {high:.1f})"
