"""`sample-attention bench`: measure, gate, record, and show what records say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..config import SampleAttentionConfig, Tuned
from ..errors import InvalidInput
from ..lab.bench.attention import (
    Settings,
    machine_gflops,
    measure_random,
    measure_selected,
    with_floor,
)
from ..lab.bench.kernels import measure_dense, measure_kernels
from ..lab.bench.plot import check_picture, plot_records
from ..lab.bench.rates import measure_rates
from ..lab.bench.tables import source_of, tables_of
from ..lab.bench.ttft import OURS, measure_ttft, prompt_facts
from ..lab.capture import CAPTURED, captured_inputs, middle_layers
from ..lab.inputs import Shape, planted_inputs, random_inputs
from ..lab.models import Prompt, load_prompted, text_tokens
from ..lab.records import BENCH, Row, origin, read_rows
from .console import counted, messages, step
from .machine import Machine
from .output import Destination, prepare_file, print_tables
from .setup import config_for

Rule = tuple[str, SampleAttentionConfig]
"""A preset's name, and the preset with what was chosen beside it."""

LayerRule = tuple[str, SampleAttentionConfig | Tuned]
"""The same, or a tuned configuration, which has coverages for every layer of its model."""

LAST_KERNEL = "whole attend"
"""What is measured last of a preset and length."""

MANY_LAYERS = 12
"""Layers that every model has at least: as many are measured by default as of a larger one."""


@dataclass(frozen=True)
class AttentionOptions:
    """What is measured of attention alone.

    Attributes:
        source: `random` or `captured:MODEL`.
        lengths: tokens.
        rules: how keys are selected; with random inputs the first gives segment and window, and
            is not a tuned one.
        settings: how rows are measured.
        machine: where.
        shape: of random inputs; captured ones take its batch.
        density: of random lists.
        layers: of a captured model; None: a quarter, half and three quarters of it.
        text: kind of text that a captured model reads.
        yarn: factor that stretches its context.
    """

    source: str
    lengths: tuple[int, ...]
    rules: tuple[LayerRule, ...]
    settings: Settings = field(default_factory=Settings)
    machine: Machine = field(default_factory=Machine)
    shape: Shape = field(default_factory=Shape)
    density: float = 0.1
    layers: tuple[int, ...] | None = None
    text: str = "prose"
    yarn: float | None = None


@dataclass(frozen=True)
class KernelOptions:
    """What is measured of each kernel, on an NVIDIA GPU.

    Attributes:
        lengths: tokens.
        rules: how keys are selected.
        machine: where.
        shape: of the tensors.
        density: share of the keys that are planted, and so selected.
        dense: names of dense providers; empty: all that accept.
        repeats: runs of each call.
        seed: of the tensors.
    """

    lengths: tuple[int, ...]
    rules: tuple[Rule, ...]
    machine: Machine = field(default_factory=Machine)
    shape: Shape = field(default_factory=Shape)
    density: float = 0.1
    dense: tuple[str, ...] = ()
    repeats: int = 10
    seed: int = 0


@dataclass(frozen=True)
class TtftOptions:
    """What is measured of a whole model.

    Attributes:
        prompt: model and text.
        lengths: tokens.
        preset: of our runs.
        config: of our runs.
        machine: where.
        dense: names of dense providers; empty: all that accept.
        repeats: timed runs of each method.
    """

    prompt: Prompt
    lengths: tuple[int, ...]
    preset: str
    config: SampleAttentionConfig | Tuned
    machine: Machine = field(default_factory=Machine)
    dense: tuple[str, ...] = ()
    repeats: int = 5


def bench_attention(options: AttentionOptions, destination: Destination) -> None:
    """Measure attention alone, row by row.

    Raises:
        RedGate: a result is wrong on the inputs; nothing is recorded of it.
        SampleAttentionError: bad input, as each step states it.
    """
    _check_lengths(options.lengths)
    prepare_file(destination.output)
    device, dtype = options.machine.prepare()
    provenance = origin(device, options.settings.seed)
    gflops = machine_gflops() if device.type == "cpu" else None
    count = len(options.lengths)
    if options.source != "random":
        count *= len(options.rules) * len(options.layers or middle_layers(MANY_LAYERS))
    rows: list[Row] = []
    with counted("measuring", count, quiet=destination.as_json) as advance:
        for row in _attention_rows(options, device, dtype):
            full = row if gflops is None else with_floor(row, gflops)
            rows.append({**full, **provenance})
            destination.keep(rows[-1])
            advance(f"{source_of(row)}, {row['seq_len']} tokens")
    _show(rows, destination)


def bench_kernels(options: KernelOptions, destination: Destination) -> None:
    """Measure every kernel of the Triton backend beside its floor, length by length.

    Raises:
        RedGate: a result is wrong on the inputs; nothing is recorded of it.
        SampleAttentionError: no NVIDIA GPU, or bad input as each step states it.
    """
    _check_lengths(options.lengths)
    prepare_file(destination.output)
    device, dtype = options.machine.prepare()
    if device.type != "cuda":
        raise InvalidInput(
            f"bench kernels on {device}: the kernels run on an NVIDIA GPU; `bench attention` "
            "measures any device"
        )
    if any(config.dense for _, config in options.rules):
        raise InvalidInput("bench kernels: coverage 1 selects nothing; choose a lower --coverage")
    provenance = origin(device, options.seed)
    rows: list[Row] = []
    count = len(options.lengths) * len(options.rules)
    with counted("measuring", count, quiet=destination.as_json) as advance:
        for row in _kernel_rows(options, device, dtype):
            rows.append({**row, **provenance})
            destination.keep(rows[-1])
            if row["kernel"] == LAST_KERNEL:
                advance(f"{row['preset']} at {row['coverage']}, {row['seq_len']} tokens")
    _show(rows, destination)


def bench_ttft(options: TtftOptions, destination: Destination) -> None:
    """Measure the time to first token of every method, length by length.

    Raises:
        SampleAttentionError: bad input, as each step states it.
    """
    _check_lengths(options.lengths)
    prepare_file(destination.output)
    device, dtype = options.machine.prepare()
    provenance, quiet = origin(device, seed=0), destination.as_json
    with step(f"loading {options.prompt.model}", quiet=quiet):
        loaded = load_prompted(options.prompt, dtype, device)
    rows: list[Row] = []
    for length in options.lengths:
        config = config_for(options.config, length)
        ours = {"preset": options.preset, "coverage": config.coverage, "config": asdict(config)}
        token_ids = text_tokens(loaded, options.prompt.text, 1, length)
        with counted(f"measuring {length} tokens", None, quiet=quiet) as advance:
            measured = measure_ttft(
                loaded, token_ids, options.config, dense=options.dense, repeats=options.repeats,
                on_run=advance,
            )  # fmt: skip
        for row in measured:
            chosen = ours if row["method"] == OURS else dict.fromkeys(ours)
            shared = prompt_facts(options.prompt, loaded, token_ids)
            rows.append({**shared, **row, **chosen, **provenance})
            destination.keep(rows[-1])
    _show(rows, destination)


def bench_report(paths: Sequence[Path], *, markdown: bool, plot: Path | None) -> None:
    """Print tables of records, and draw them.

    Raises:
        InvalidInput: a file does not hold records, or no picture has the suffix of `plot`.
        MissingExtra: a picture is asked for without matplotlib.
        OSError: a file cannot be read or written.
    """
    records = read_rows(paths, BENCH)
    if not records:
        raise InvalidInput(
            "the files hold no records; `bench attention`, `kernels` and `ttft` make them"
        )
    if plot is not None:
        check_picture(plot)
    if markdown:
        print("\n\n".join(table.markdown() for table in tables_of(records)))
    else:
        print_tables(tables_of(records))
    if plot is not None:
        plot_records(records, plot)
        messages().print(f"wrote {plot}")


def _attention_rows(
    options: AttentionOptions, device: torch.device, dtype: torch.dtype
) -> Iterator[Row]:
    settings = options.settings
    if options.source == "random":
        config = options.rules[0][1]
        if isinstance(config, Tuned):
            raise InvalidInput(
                f"--preset {options.rules[0][0]}: tuned for the layers of a model, which random "
                f"inputs do not have; choose --input captured:{config.model}"
            )
        for length in options.lengths:
            inputs = random_inputs(options.shape, length, dtype, device, settings.seed)
            yield measure_random(inputs, options.density, config, settings)
        return
    model = options.source.removeprefix(CAPTURED)
    if model == options.source or not model:
        raise InvalidInput(f"--input {options.source}: accepted are random and captured:MODEL")
    prompt = Prompt(model, options.text, options.yarn)
    for inputs in captured_inputs(
        prompt, options.layers, options.shape.batch, options.lengths, dtype, device
    ):
        for preset, rule in options.rules:
            own = config_for(rule, inputs.k.shape[2], inputs.layer)
            row = {"yarn": options.yarn, **measure_selected(inputs, preset, own, settings)}
            if isinstance(rule, SampleAttentionConfig):  # what was asked, and what depth made of it
                asked = {"coverage": rule.coverage, "config": asdict(rule)}
                row |= {**asked, "layer_coverage": own.coverage}
            yield row


def _kernel_rows(options: KernelOptions, device: torch.device, dtype: torch.dtype) -> Iterator[Row]:
    rates, shape, seed = measure_rates(dtype, device), options.shape, options.seed
    for length in options.lengths:
        inputs = planted_inputs(shape, length, options.density, dtype, device, seed)
        sizes: Row = {
            "input": inputs.name, "seq_len": length, "heads": shape.num_heads,
            "kv_heads": shape.num_kv_heads, "head_dim": shape.head_dim, "batch": shape.batch,
            "dtype": str(dtype).removeprefix("torch."), "target_density": options.density,
        }  # fmt: skip
        dense = measure_dense(inputs, options.dense, options.repeats, seed)
        fa3 = dense["fa3"].times if "fa3" in dense else None
        for measured in dense.values():
            yield {**sizes, **measured.row(rates, fa3)}
        for preset, config in options.rules:
            plan, times = measure_kernels(inputs, config, options.repeats, seed)
            rule = {"preset": preset, "coverage": config.coverage, "config": asdict(config),
                    "density": float(plan.density().mean())}  # fmt: skip
            for measured in times:
                yield {**sizes, **rule, **measured.row(rates, fa3)}


def _check_lengths(lengths: Sequence[int]) -> None:
    if min(lengths) < 1:
        raise InvalidInput(f"--lengths {min(lengths)}: a prompt has at least one token")


def _show(rows: list[Row], destination: Destination) -> None:
    if destination.as_json:
        return
    print_tables(tables_of(rows))
    if destination.output is not None:
        messages().print(f"appended {len(rows)} records to {destination.output}")
