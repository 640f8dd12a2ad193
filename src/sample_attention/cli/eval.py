"""`sample-attention eval`: measure what methods do to answers, and show what records say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InvalidInput
from ..lab.eval.report import write_evaluation
from ..lab.eval.runner import RunSettings, measure_cells, pending_cells
from ..lab.eval.suites import SUITES, Cell, Suite, cells_of, narrowed
from ..lab.eval.tables import evaluation_tables, skipped_notes
from ..lab.models import Prompt, load_prompted
from ..lab.records import EVAL, Record, Row, read_rows
from .console import counted, messages, step
from .machine import Machine
from .output import Destination, prepare_file, print_tables


@dataclass(frozen=True)
class EvalOptions:
    """What is measured.

    Attributes:
        suite: a key of `SUITES`.
        model: as `load_model` takes it; None: the suite's.
        yarn: factor that stretches its context.
        lengths: in the place of the suite's, as far as given; so are the next three.
        tasks: see `lengths`.
        methods: see `lengths`.
        n: see `lengths`.
        seed: of the prompts.
        routed: short prompts run dense, as the policy decides.
        held_out: rows per segment on which retained mass is measured.
        minutes: no cell is begun after these.
        machine: where.
    """

    suite: str
    model: str | None = None
    yarn: float | None = None
    lengths: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    n: int | None = None
    seed: int = 0
    routed: bool = False
    held_out: int = 0
    minutes: float | None = None
    machine: Machine = field(default_factory=Machine)


def evaluate(options: EvalOptions, destination: Destination) -> None:
    """Measure the cells of a suite whose rows the output does not hold yet.

    Raises:
        SampleAttentionError: bad input, as each step states it.
        OSError: a file cannot be read or written.
    """
    suite = _suite(options)
    cells = cells_of(suite)
    known = _known(destination.output)
    prepare_file(destination.output)
    quiet = destination.as_json
    device, dtype = options.machine.prepare()
    prompt = Prompt(options.model or suite.model, yarn=options.yarn)
    settings = RunSettings(
        prompt.model_name, options.yarn, options.seed, options.routed, options.held_out,
        options.minutes,
    )  # fmt: skip
    with step(f"loading {prompt.model}", quiet=quiet):
        loaded = load_prompted(prompt, dtype, device)
    if not options.lengths:
        cells = _within(cells, loaded.context_length)
    pending = pending_cells(loaded, cells, settings, known)
    rows: list[Row] = []
    with counted("measuring", sum(cell.n for cell in pending), quiet=quiet) as advance:
        for row in measure_cells(loaded, pending, settings, known, advance):
            destination.keep(row)
            rows.append(row)
    if not quiet:
        _show([*known, *rows])
        left = f"; {len(pending) - len(rows)} are left" if len(pending) > len(rows) else ""
        messages().print(f"measured {len(rows)} cells{left}")


def report_evaluation(paths: Sequence[Path], *, markdown: bool, output: Path | None) -> None:
    """Print tables of records, and write a page with pictures.

    Raises:
        InvalidInput: a file does not hold records.
        MissingExtra: pictures are asked for without matplotlib.
        OSError: a file cannot be read or written.
    """
    rows = read_rows(paths, EVAL)
    if markdown:
        print("\n\n".join(table.markdown() for table in evaluation_tables(rows)))
    else:
        _show(rows)
    if output is not None:
        for path in write_evaluation(rows, output):
            messages().print(f"wrote {path}")


def _suite(options: EvalOptions) -> Suite:
    if options.suite not in SUITES:
        raise InvalidInput(f"--suite {options.suite}: accepted are {', '.join(SUITES)}")
    return narrowed(
        SUITES[options.suite], lengths=options.lengths, tasks=options.tasks,
        methods=options.methods, n=options.n,
    )  # fmt: skip


def _within(cells: list[Cell], context_length: int) -> list[Cell]:
    """What a suite asks for that the model can read; the rest is named."""
    beyond = sorted({cell.length for cell in cells if cell.length > context_length})
    if beyond:
        messages().print(
            f"not run: prompts of {', '.join(map(str, beyond))} tokens, since the model accepts "
            f"{context_length}; --yarn stretches that"
        )
    return [cell for cell in cells if cell.length <= context_length]


def _known(output: Path | None) -> list[Record]:
    return read_rows([output], EVAL) if output is not None and output.exists() else []


def _show(rows: Sequence[Record]) -> None:
    print_tables(evaluation_tables(rows))
    for note in skipped_notes(rows):
        messages().print(f"left out: {note}")
