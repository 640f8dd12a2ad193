"""The command `sample-attention tune` and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .grouping import grouped
from .machine import Machine
from .options import Assignments, Json, Lengths, Preset

# typer evaluates these annotations at run time, on Python 3.10 too, hence Optional.

tuning = typer.Typer()


@tuning.command("tune")
@grouped
def _tune(  # noqa: PLR0913 - the options of a command
    *,
    model: Annotated[str, typer.Option(help="hub id, folder, GGUF file, or a pinned key")],
    lengths: Lengths = "2048,4096",
    requests: Annotated[
        int, typer.Option(min=4, help="per length; half to search on, half to validate on")
    ] = 8,
    texts: Annotated[str, typer.Option("--text", help="prose, code or both")] = "prose,code",
    max_kl: Annotated[
        float, typer.Option(min=0, help="most KL(dense || sparse) of the next token, nats")
    ] = 0.01,
    min_mass: Annotated[
        float, typer.Option(min=0, max=1, help="least retained mass on held-out rows")
    ] = 0.9,
    preset: Preset = "default", config: Assignments = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="no prefill of the search is begun after these"),
    ] = None,
    by_head: Annotated[
        bool,
        typer.Option("--by-head/--one-coverage", help="a coverage for each head, or one for all"),
    ] = True,
    machine: Machine,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="file of the tuned configuration, such as tuned.json"),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Find the cheapest configuration of a model that stays near dense attention, by length."""
    from ..lab.tuning import Budget, TuneOptions
    from .setup import build_config, parse_indices
    from .tune import tune_model

    options = TuneOptions(
        parse_indices("lengths", lengths) or (), requests, tuple(texts.split(",")),
        Budget(max_kl, min_mass), build_config(preset, None, config), minutes, by_head,
    )  # fmt: skip
    tune_model(model, options, machine, output, as_json=as_json)
