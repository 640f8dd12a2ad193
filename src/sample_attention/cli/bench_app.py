"""The commands of `sample-attention bench` and their options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..lab.inputs import Shape
from .grouping import grouped
from .machine import Machine
from .options import Device, Dtype, Lengths, Markdown, Model, RecordFiles, Routed, Yarn
from .output import Destination
from .rules import RuleOptions, SeveralRules

# typer evaluates these annotations at run time, on Python 3.10 too, hence Optional.

Dense = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="dense provider to time; may be repeated; by default all that accept"),
]
Text = Annotated[str, typer.Option(help="prose (the language reference) or code (the library)")]


@dataclass(frozen=True)
class Sizes:
    """Sizes of made-up inputs, as `Shape` holds them."""

    batch: Annotated[int, typer.Option(min=1, help="sequences side by side")] = 1
    heads: Annotated[int, typer.Option(min=1, help="query heads of made-up inputs")] = 32
    kv_heads: Annotated[int, typer.Option(min=1, help="their key/value heads")] = 8
    head_dim: Annotated[int, typer.Option(min=1, help="their head dim")] = 128

    def shape(self) -> Shape:
        """The same, for the laboratory."""
        return Shape(self.batch, self.heads, self.kv_heads, self.head_dim)


bench = typer.Typer(no_args_is_help=True, help="Measure, and show what was measured.")


@bench.command("attention")
@grouped
def _attention(  # noqa: PLR0913 - the options of a command
    *,
    source: Annotated[
        str, typer.Option("--input", help="random, or captured:MODEL for what its layers are given")
    ] = "random",
    lengths: Lengths = "8192,32768,131072", sizes: Sizes,
    density: Annotated[float, typer.Option(help="of random lists, the window included")] = 0.1,
    layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="of a captured model, such as 4,12; by default three"),
    ] = None,
    text: Text = "prose", yarn: Yarn = None, rules: SeveralRules,
    backend: Annotated[str, typer.Option(help="auto, or a backend's name")] = "auto",
    routed: Routed = False, dense: Dense = None,
    seconds: Annotated[float, typer.Option(min=0, help="at least this long per row")] = 2.0,
    machine: Machine, destination: Destination,
) -> None:  # fmt: skip
    """Attention alone: select, attend and both, against dense attention; correctness first."""
    from ..lab.bench.attention import Settings
    from .bench import AttentionOptions, bench_attention
    from .setup import parse_indices

    options = AttentionOptions(
        source, parse_indices("lengths", lengths) or (), rules.rules(),
        Settings(backend, tuple(dense or ()), seconds, routed), machine, sizes.shape(),
        density, parse_indices("layers", layers), text, yarn,
    )  # fmt: skip
    bench_attention(options, destination)


@bench.command("kernels")
@grouped
def _kernels(  # noqa: PLR0913 - the options of a command
    *, lengths: Lengths = "32768,131072", sizes: Sizes,
    density: Annotated[float, typer.Option(help="share of the keys that stand out")] = 0.1,
    rules: SeveralRules, dense: Dense = None,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each call")] = 10,
    device: Device = "auto", dtype: Dtype = None, destination: Destination,
) -> None:  # fmt: skip
    """Each kernel on an NVIDIA GPU: device time beside the least that its work can take."""
    from .bench import KernelOptions, bench_kernels
    from .setup import parse_indices

    options = KernelOptions(
        parse_indices("lengths", lengths) or (), rules.configs(), Machine(device, dtype),
        sizes.shape(), density, tuple(dense or ()), repeats,
    )  # fmt: skip
    bench_kernels(options, destination)


@bench.command("ttft")
@grouped
def _ttft(  # noqa: PLR0913 - the options of a command
    *, model: Model, lengths: Lengths = "8192", text: Text = "prose", yarn: Yarn = None,
    rule: RuleOptions, dense: Dense = None,
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each method")] = 5,
    machine: Machine, destination: Destination,
) -> None:  # fmt: skip
    """Time to first token of a real model on real text: dense attention against ours."""
    from ..lab.models import Prompt
    from .bench import TtftOptions, bench_ttft
    from .setup import parse_indices

    options = TtftOptions(
        Prompt(model, text, yarn), parse_indices("lengths", lengths) or (), rule.preset,
        rule.rule(), machine, tuple(dense or ()), repeats,
    )  # fmt: skip
    bench_ttft(options, destination)


@bench.command("report")
def _report(
    records: RecordFiles, markdown: Markdown = False,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="picture to draw, such as speedup.png or speedup.svg"),
    ] = None,
) -> None:  # fmt: skip
    """Tables and a picture of records."""
    from .bench import bench_report

    bench_report(records, markdown=markdown, plot=plot)
