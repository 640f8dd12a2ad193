"""The command `sample-attention eval`, its options and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .grouping import grouped
from .machine import Machine
from .options import Markdown, RecordFiles, Routed, Yarn
from .output import Destination

# typer evaluates these annotations at run time, on Python 3.10 too, hence Optional.

evaluation = typer.Typer(help="Measure what sparse attention does to answers, and show it.")


@evaluation.callback(invoke_without_command=True)
@grouped
def _evaluate(  # noqa: PLR0913 - the options of a command
    *, context: typer.Context,
    suite: Annotated[str, typer.Option(help="quick (for a CPU), standard or full")] = "quick",
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="as for other commands; by default the suite's"),
    ] = None,
    yarn: Yarn = None,
    methods: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--method",
            metavar="NAME[:KEY=VALUE,...]",
            help="such as paper or default:coverage=0.9 or default:density=0.08; may be repeated",
        ),
    ] = None,
    tasks: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="such as needle,ruler,babilong,ppl or longbench:FILE"),
    ] = None,
    lengths: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="tokens of the prompts, such as 8192,32768; the longest first"),
    ] = None,
    n: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("-n", "--n", min=1, help="prompts of each task"),
    ] = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="begin nothing new after these; the next run goes on"),
    ] = None,
    held_out: Annotated[
        int, typer.Option(min=0, help="rows per segment on which retained mass is measured")
    ] = 0,
    seed: Annotated[int, typer.Option(help="of the prompts")] = 0,
    routed: Routed = False, machine: Machine, destination: Destination,
) -> None:  # fmt: skip
    """Answer the same prompts with dense attention and with sparse methods, and compare."""
    if context.invoked_subcommand is not None:
        return
    from .eval import EvalOptions, evaluate
    from .setup import parse_indices

    options = EvalOptions(
        suite, model, yarn, (parse_indices("lengths", lengths) or ())[::-1],
        tuple(tasks.split(",")) if tasks else (), tuple(methods or ()), n, seed, routed, held_out,
        minutes, machine,
    )  # fmt: skip
    evaluate(options, destination)


@evaluation.command("report")
def _report(
    records: RecordFiles, markdown: Markdown = False,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="folder for report.html and its pictures"),
    ] = None,
) -> None:  # fmt: skip
    """Tables and pictures of records."""
    from .eval import report_evaluation

    report_evaluation(records, markdown=markdown, output=output)
