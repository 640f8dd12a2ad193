"""The commands of `sample-attention bench` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .options import Assignments, Coverage, Json, Model, PresetOrTuned, Threads

if TYPE_CHECKING:
    from .bench import LayerRule, Rule

# typer evaluates these annotations at run time, on Python 3.10 too, hence Optional.

Lengths = Annotated[str, typer.Option(help="tokens of the prompts, such as 8192,32768")]
Presets = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--preset", help="default, fast, pooled, paper, mlsys or tuned:NAME; may be repeated"
    ),
]
Coverages = Annotated[
    Optional[list[float]],  # noqa: UP045
    typer.Option("--coverage", help="share of the attention to keep, in (0, 1]; may be repeated"),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="by default float32 on a CPU and bfloat16 on a GPU"),
]
Dense = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="dense provider to time; may be repeated; by default all that accept"),
]
Text = Annotated[str, typer.Option(help="prose (the language reference) or code (the library)")]
Yarn = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="stretch the model's context by this factor, as in 4"),
]
Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="file of JSON lines that records are appended to"),
]

Batch = Annotated[int, typer.Option(min=1, help="sequences side by side")]
Heads = Annotated[int, typer.Option(min=1, help="query heads of made-up inputs")]
KvHeads = Annotated[int, typer.Option(min=1, help="their key/value heads")]
HeadDim = Annotated[int, typer.Option(min=1, help="their head dim")]

bench = typer.Typer(no_args_is_help=True, help="Measure, and show what was measured.")


@bench.command("attention")
def _attention(  # noqa: PLR0913, PLR0917 - the options of a command
    source: Annotated[
        str, typer.Option("--input", help="random, or captured:MODEL for what its layers are given")
    ] = "random",
    lengths: Lengths = "8192,32768,131072",
    batch: Batch = 1, heads: Heads = 32, kv_heads: KvHeads = 8, head_dim: HeadDim = 128,
    density: Annotated[float, typer.Option(help="of random lists, the window included")] = 0.1,
    layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="of a captured model, such as 4,12; by default three"),
    ] = None,
    text: Text = "prose", yarn: Yarn = None,
    preset: Presets = None, coverage: Coverages = None, config: Assignments = None,
    backend: Annotated[str, typer.Option(help="auto, or a backend's name")] = "auto",
    routed: Annotated[
        bool, typer.Option("--routed", help="dense where the policy says so; else always sparse")
    ] = False,
    dense: Dense = None,
    seconds: Annotated[float, typer.Option(min=0, help="at least this long per row")] = 2.0,
    device: Device = "auto", dtype: Dtype = None, threads: Threads = None,
    output: Output = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Attention alone: select, attend and both, against dense attention; correctness first."""
    from ..lab.bench.attention import Settings
    from ..lab.inputs import Shape
    from .bench import AttentionOptions, Destination, Machine, bench_attention
    from .setup import parse_indices

    options = AttentionOptions(
        source,
        parse_indices("lengths", lengths) or (),
        _layer_rules(preset, coverage, config),
        Settings(backend, tuple(dense or ()), seconds, routed),
        Machine(device, dtype, threads),
        Shape(batch, heads, kv_heads, head_dim),
        density, parse_indices("layers", layers), text, yarn,
    )  # fmt: skip
    bench_attention(options, Destination(output, as_json))


@bench.command("kernels")
def _kernels(  # noqa: PLR0913, PLR0917 - the options of a command
    lengths: Lengths = "32768,131072",
    batch: Batch = 1, heads: Heads = 32, kv_heads: KvHeads = 8, head_dim: HeadDim = 128,
    density: Annotated[float, typer.Option(help="share of the keys that stand out")] = 0.1,
    preset: Presets = None, coverage: Coverages = None, config: Assignments = None,
    dense: Dense = None,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each call")] = 10,
    device: Device = "auto", dtype: Dtype = None, output: Output = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Each kernel on an NVIDIA GPU: device time beside the least that its work can take."""
    from ..lab.inputs import Shape
    from .bench import Destination, KernelOptions, Machine, bench_kernels
    from .setup import parse_indices

    options = KernelOptions(
        parse_indices("lengths", lengths) or (), _rules(preset, coverage, config),
        Machine(device, dtype), Shape(batch, heads, kv_heads, head_dim), density,
        tuple(dense or ()), repeats,
    )  # fmt: skip
    bench_kernels(options, Destination(output, as_json))


@bench.command("ttft")
def _ttft(  # noqa: PLR0913, PLR0917 - the options of a command
    model: Model, lengths: Lengths = "8192", text: Text = "prose", yarn: Yarn = None,
    preset: PresetOrTuned = "default", coverage: Coverage = None, config: Assignments = None,
    dense: Dense = None,
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each method")] = 5,
    device: Device = "auto", dtype: Dtype = None, threads: Threads = None,
    output: Output = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Time to first token of a real model on real text: dense attention against ours."""
    from ..lab.models import Prompt
    from .bench import Destination, Machine, TtftOptions, bench_ttft
    from .setup import build_rule, parse_indices

    options = TtftOptions(
        Prompt(model, text, yarn), parse_indices("lengths", lengths) or (), preset,
        build_rule(preset, coverage, config), Machine(device, dtype, threads),
        tuple(dense or ()), repeats,
    )  # fmt: skip
    bench_ttft(options, Destination(output, as_json))


@bench.command("report")
def _report(
    records: Annotated[list[Path], typer.Argument(help="files of JSON lines")],
    markdown: Annotated[bool, typer.Option("--markdown", help="print tables in Markdown")] = False,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="picture to draw, such as speedup.png or speedup.svg"),
    ] = None,
) -> None:
    """Tables and a picture of records."""
    from .bench import bench_report

    bench_report(records, markdown=markdown, plot=plot)


def _rules(
    presets: list[str] | None, coverages: list[float] | None, assignments: list[str] | None
) -> tuple[Rule, ...]:
    """Every preset at every coverage; without any of either the default, and the preset's own."""
    from .setup import build_config

    return tuple(
        (name, build_config(name, coverage, assignments))
        for name, coverage in _crossed(presets, coverages)
    )


def _layer_rules(
    presets: list[str] | None, coverages: list[float] | None, assignments: list[str] | None
) -> tuple[LayerRule, ...]:
    """The same, tuned configurations among them."""
    from .setup import build_rule

    return tuple(
        (name, build_rule(name, coverage, assignments))
        for name, coverage in _crossed(presets, coverages)
    )


def _crossed(
    presets: list[str] | None, coverages: list[float] | None
) -> list[tuple[str, float | None]]:
    return [(x, y) for x in presets or ["default"] for y in coverages or [None]]
