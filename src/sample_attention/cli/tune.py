"""`sample-attention tune`: the cheapest configuration of a model within an error budget."""

from __future__ import annotations

from pathlib import Path

from ..config import Tuned
from ..lab.models import Prompt, load_model
from ..lab.records import RecordTable
from ..lab.tuning import TuneOptions, tune
from .console import counted, messages, step
from .machine import Machine
from .output import prepare_file, print_tables

COLUMNS = ("coverage", "segment", "row_stride", "probes", "window")


def tune_model(
    model: str, options: TuneOptions, machine: Machine, output: Path | None, *, as_json: bool
) -> None:
    """Load, search, validate, and write the file.

    Raises:
        SampleAttentionError: bad input, as each step states it.
        OSError: the file cannot be written.
    """
    device, dtype = machine.prepare()
    prepare_file(output)
    with step(f"loading {model}", quiet=as_json):
        loaded = load_model(model, dtype=dtype, device=device)
    with counted("searching", None, quiet=as_json) as advance:
        tuned = tune(loaded, options, Prompt(model).model_name, advance)
    if output is not None:
        tuned.save(output)
    if as_json:
        print(tuned.to_json(), end="")
        return
    print_tables([_table(tuned)])
    for note in _notes(tuned):
        messages().print(note)
    if output is not None:
        messages().print(f'wrote {output}; use it as --preset {output}, or as config="{output}"')


def _table(tuned: Tuned) -> RecordTable:
    headers = ("from keys", *COLUMNS, "density", "sampling", "cost", "KL", "at most", "kept")
    lines: list[tuple[str, ...]] = []
    for interval, row in zip(tuned.intervals, tuned.measured, strict=True):
        validated = row["validated"]
        lines.append((
            f"{interval.min_kv_len:,}", *(str(getattr(interval.config, x)) for x in COLUMNS),
            *(f"{validated[x]:.3f}" for x in ("density", "sampling", "cost")),
            *(f"{validated[x]:.4f}" for x in ("kl", "kl_bound")),
            f"{validated['retained_mass']:.3f}",
        ))  # fmt: skip
    return RecordTable(f"{tuned.model}, on passages not searched on", headers, tuple(lines))


def _notes(tuned: Tuned) -> list[str]:
    notes: list[str] = []
    for row in tuned.measured:
        if not row["finished"]:
            notes.append(f"{row['length']:,} tokens: the time ended the search early")
        first, final = (row[x]["coverage"] for x in ("searched", "validated"))
        if final > first:
            notes.append(
                f"{row['length']:,} tokens: coverage {first} was found, {final} keeps the budget "
                "on passages not searched on"
            )
    return notes
