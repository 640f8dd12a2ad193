"""The commands and their options; what a command needs is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .. import __version__
from .bench_app import bench
from .eval_app import evaluation
from .grouping import grouped
from .machine import Machine
from .options import (
    Chat,
    HeldOut,
    InspectFolder,
    Json,
    Model,
    NewTokens,
    PromptFile,
    Repeats,
    ReportFolder,
    Threads,
)
from .rules import RuleOptions
from .tune_app import tuning

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"sample-attention {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """Sparse attention for long prompts, chosen per head at run time."""
    del version


app.add_typer(bench, name="bench")
app.add_typer(evaluation, name="eval")
app.add_typer(tuning)


@app.command("run")
@grouped
def _run(  # noqa: PLR0913 - the options of a command
    *, model: Model, prompt_file: PromptFile, rule: RuleOptions, max_new_tokens: NewTokens = 32,
    machine: Machine, output: ReportFolder = None, held_out: HeldOut = 4, repeats: Repeats = 1,
    chat: Chat = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Answer a prompt twice, with dense and with sparse attention, and compare."""
    from .report import ComparisonOptions
    from .run import run

    options = ComparisonOptions(
        rule.rule(held_out), max_new_tokens, held_out, repeats, output, as_json
    )
    run(model, prompt_file, machine, chat, options)


@app.command("inspect")
@grouped
def _inspect(  # noqa: PLR0913 - the options of a command
    *, model: Model, prompt_file: PromptFile,
    layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="such as 0,5,12, or all; by default the first, middle and last"),
    ] = None,
    heads: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="heads to draw, such as 0,3; by default one per named layer"),
    ] = None,
    rule: RuleOptions,
    rows: Annotated[int, typer.Option(min=1, help="random query rows to measure on")] = 128,
    machine: Machine, output: InspectFolder = None, chat: Chat = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the plans of chosen layers, and how much of the attention each head keeps."""
    from .inspect import ALL, InspectOptions, inspect
    from .setup import parse_indices

    settings = rule.rule()
    chosen = ALL if layers == ALL else parse_indices("layers", layers)
    drawn = parse_indices("heads", heads)
    options = InspectOptions(settings, chosen, drawn, rows, output, as_json)
    inspect(model, prompt_file, machine, chat, options)


@app.command("doctor")
def _doctor(as_json: Json = False) -> None:
    """Show the environment, and what every backend says to a typical problem."""
    from .doctor import doctor

    doctor(as_json=as_json)


@app.command("demo")
@grouped
def _demo(
    *,
    tokens: Annotated[int, typer.Option(min=256, help="length of the prompt")] = 7000,
    rule: RuleOptions,
    threads: Threads = None,
    output: Annotated[Path, typer.Option(help="folder of the report")] = Path("demo"),
    repeats: Repeats = 1, as_json: Json = False,
) -> None:  # fmt: skip
    """Fetch a small model and answer a question about a long real text, dense and sparse."""
    from .demo import demo
    from .report import ComparisonOptions

    settings = rule.rule(held_out=4)
    demo(tokens, threads, ComparisonOptions(settings, 32, 4, repeats, output, as_json))
