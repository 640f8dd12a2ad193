"""The commands and their options; what a command needs is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# typer evaluates these annotations at run time, on Python 3.10 too, hence Optional.

Model = Annotated[
    str, typer.Argument(help="hub id, folder, GGUF file, or a pinned key such as smollm2-135m")
]
PromptFile = Annotated[Path, typer.Argument(help="text file (UTF-8) that holds the prompt")]
Preset = Annotated[str, typer.Option(help="default, paper (v1) or mlsys (v3)")]
Coverage = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="share of the attention to keep, in (0, 1]; overrides the preset"),
]
Assignments = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--config", metavar="KEY=VALUE", help="any other field; may be repeated"),
]
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="float32, bfloat16 or float16; by default what suits the model"),
]
Device = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="cpu or cuda; by default cuda where there is one"),
]
Threads = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="CPU threads; by default as torch chooses"),
]
Chat = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--chat/--no-chat", help="wrap the prompt in the model's chat template, if it has one"
    ),
]
Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="folder for report.json and pictures; none are written without it"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON on stdout and nothing else")]
NewTokens = Annotated[int, typer.Option(min=1, help="longest answer, in tokens")]
HeldOut = Annotated[
    int, typer.Option(min=0, help="rows per segment on which the kept attention is measured")
]
Repeats = Annotated[int, typer.Option(min=1, help="timed runs of each kind; the median counts")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sparse attention for long prompts, chosen per head at run time.",
)


@app.command("run")
def _run(  # noqa: PLR0913, PLR0917 - the options of a command
    model: Model, prompt_file: PromptFile, preset: Preset = "default", coverage: Coverage = None,
    config: Assignments = None, max_new_tokens: NewTokens = 32, dtype: Dtype = None,
    device: Device = None, threads: Threads = None, output: Output = None,
    held_out: HeldOut = 4, repeats: Repeats = 1, chat: Chat = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Answer a prompt twice, with dense and with sparse attention, and compare."""
    from .run import RunOptions, run
    from .setup import ModelOptions, build_config

    settings = build_config(preset, coverage, config)
    place = ModelOptions(model, dtype, device, threads, chat)
    run(
        place, prompt_file, RunOptions(settings, max_new_tokens, held_out, repeats, output, as_json)
    )


@app.command("inspect")
def _inspect(  # noqa: PLR0913, PLR0917 - the options of a command
    model: Model, prompt_file: PromptFile,
    layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="such as 0,5,12; by default the first, the middle and the last"),
    ] = None,
    heads: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="heads to draw, such as 0,3; by default one per layer"),
    ] = None,
    preset: Preset = "default", coverage: Coverage = None, config: Assignments = None,
    rows: Annotated[int, typer.Option(min=1, help="random query rows to measure on")] = 128,
    dtype: Dtype = None, device: Device = None, threads: Threads = None, output: Output = None,
    chat: Chat = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the plans of chosen layers, and how much of the attention each head keeps."""
    from .inspect import InspectOptions, inspect
    from .setup import ModelOptions, build_config, parse_indices

    settings = build_config(preset, coverage, config)
    place = ModelOptions(model, dtype, device, threads, chat)
    chosen = parse_indices("layers", layers), parse_indices("heads", heads)
    inspect(place, prompt_file, InspectOptions(settings, *chosen, rows, output, as_json))


@app.command("doctor")
def _doctor(as_json: Json = False) -> None:
    """Show the environment, and what every backend says to a typical problem."""
    from .doctor import doctor

    doctor(as_json=as_json)


@app.command("demo")
def _demo(
    tokens: Annotated[int, typer.Option(min=256, help="length of the prompt")] = 7000,
    preset: Preset = "default", coverage: Coverage = None, config: Assignments = None,
    threads: Threads = None,
    output: Annotated[Path, typer.Option(help="folder of the report")] = Path("demo"),
    repeats: Repeats = 1, as_json: Json = False,
) -> None:  # fmt: skip
    """Fetch a small model and answer a question about a long real text, dense and sparse."""
    from .demo import demo
    from .run import RunOptions
    from .setup import build_config

    settings = build_config(preset, coverage, config)
    demo(tokens, threads, RunOptions(settings, 32, 4, repeats, output, as_json))
