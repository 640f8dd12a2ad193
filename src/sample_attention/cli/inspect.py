"""`sample-attention inspect`: the plans of chosen layers, drawn and measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .._extras import require
from ..api import select
from ..config import SampleAttentionConfig, Tuned
from ..errors import InvalidInput, UnsupportedAttention
from ..lab.analysis.cra import measure_retained_mass
from ..lab.analysis.probabilities import sample_rows
from ..lab.analysis.sparsity import sparsity_degree
from ..lab.capture import AttentionInputs, capture_attention, check_layers
from ..lab.generation import prefill
from ..lab.models import LoadedModel
from ..lab.records import Provenance
from ..plan import StripePlan, render
from ..problem import Problem
from ..routing.route import Route, route
from .comparison import DENSE_IMPLEMENTATION
from .console import layer_bar, messages, step
from .machine import Machine
from .setup import check_length, check_rule, config_for, load, read_prompt, tokenized

SEED = 0

ALL: Literal["all"] = "all"

FACTS = ("density", "retained_mass_mean", "retained_mass_p5", "retained_mass_min",
         "sparsity_degree")  # fmt: skip
"""Of a head, in the order of the tables."""


@dataclass(frozen=True)
class InspectOptions:
    """What is inspected, and how it is shown.

    Attributes:
        config: of the plans.
        layers: indices, or `ALL`; None: the first, the middle and the last.
        heads: the heads to draw; None: in each layer the one with the middle density, and of
            `ALL` layers none.
        rows: random query rows to measure on.
        output: folder for `inspect.json`, the picture of all heads, and one per drawn head; None:
            no files.
        as_json: print JSON on stdout, and nothing else there.
    """

    config: SampleAttentionConfig | Tuned
    layers: tuple[int, ...] | Literal["all"] | None = None
    heads: tuple[int, ...] | None = None
    rows: int = 128
    output: Path | None = None
    as_json: bool = False


@dataclass(frozen=True)
class LayerView:
    """One layer: what it was given, what is kept of it, and how that measures.

    Attributes:
        layer: index in the model.
        inputs: of its attention, in a dense prefill.
        plan: selected from them.
        route: whether such a call would run sparse.
        heads: one dict of statistics per head.
        drawn: the heads to draw.
    """

    layer: int
    inputs: AttentionInputs
    plan: StripePlan
    route: Route
    heads: list[dict[str, Any]]
    drawn: tuple[int, ...]


def inspect(
    name: str, prompt_file: Path, machine: Machine, chat: bool | None, options: InspectOptions
) -> None:  # fmt: skip
    """Prefill densely, select from what each layer was given, and show the plans.

    Raises:
        SampleAttentionError: bad input, as each step states it.
        OSError: a file that cannot be read or written.
    """
    if options.output is not None:
        require("matplotlib", "plot")
        options.output.mkdir(parents=True, exist_ok=True)
    text = read_prompt(prompt_file)
    loaded = load(name, machine)
    check_rule(options.config, loaded)
    layers, heads = _chosen(loaded, options)
    token_ids = tokenized(loaded, text, chat)
    check_length(loaded, token_ids.shape[1], 0)
    config = config_for(options.config, token_ids.shape[1])
    model: Any = loaded.model
    model.set_attn_implementation(DENSE_IMPLEMENTATION)
    with capture_attention(model, layers) as captured, layer_bar(model, "dense prefill"):
        prefill(model, token_ids)
    count = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    views: list[LayerView] = []
    for layer in layers:
        with step(f"layer {layer}: selecting and measuring"):
            own = config_for(options.config, token_ids.shape[1], (layer, count))
            given = captured.pop(layer)
            views.append(_view(layer, given, heads, own, config.coverage, options.rows))
    content = {
        "prompt_tokens": token_ids.shape[1],
        "model": loaded.name,
        "config": asdict(config),
        "rows": min(options.rows, token_ids.shape[1]),
        "layers": [_row(view) for view in views],
        "provenance": Provenance.collect(model.device, seed=SEED).as_row(),
    }
    if options.output is not None:
        _write(content, views, options.output)
        messages().print(f"wrote {options.output / 'inspect.json'} and pictures beside it")
    if options.as_json:
        print(json.dumps(content))
        return
    if options.layers == ALL:
        _print_layers(views, config.coverage)
        return
    for view in views:
        _print_view(view, config.coverage)


def _chosen(
    loaded: LoadedModel, options: InspectOptions
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The layers and heads, checked before any work is done."""
    text: Any = loaded.model.config.get_text_config(decoder=True)
    count, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
    if options.layers == ALL:
        layers = tuple(range(count))
    else:
        layers = options.layers or tuple(sorted({0, count // 2, count - 1}))
    check_layers(layers, count)
    if options.heads is not None and max(options.heads) >= heads:
        raise InvalidInput(
            f"the model has no head {max(options.heads)}; accepted: 0 to {heads - 1}"
        )
    return layers, () if options.layers == ALL and options.heads is None else options.heads


def _view(
    layer: int, inputs: AttentionInputs, heads: tuple[int, ...] | None,
    config: SampleAttentionConfig, coverage: float, row_count: int,
) -> LayerView:  # fmt: skip
    if inputs.mask is not None:
        raise UnsupportedAttention(
            f"layer {layer} sees only some of its keys (a sliding window) and is computed exactly; "
            "choose other layers with --layers"
        )
    q, k, v, scale = inputs.q, inputs.k, inputs.v, inputs.scale
    plan = select(q, k, config, scale=scale)
    density = plan.density()[0]
    rows = sample_rows(q.shape[2], row_count, SEED)
    mass = measure_retained_mass(q, k, plan, rows=rows, scale=scale)
    degree = sparsity_degree(q, k, coverage, rows=rows, scale=scale)[0]
    facts = {
        "density": density,
        "retained_mass_mean": mass.mean,
        "retained_mass_p5": mass.p5,
        "retained_mass_min": mass.cra,
        "sparsity_degree": degree,
        "dense_segments": plan.dense[0].double().mean(-1),
    }
    heads_facts = [
        {"head": h, **{name: round(float(x[h]), 6) for name, x in facts.items()}}
        for h in range(len(density))
    ]
    middle = int(density.argsort()[len(density) // 2])
    answer = route(Problem.of(q, k, v), config)
    drawn = (middle,) if heads is None else heads
    return LayerView(layer, inputs, plan, answer, heads_facts, drawn)


def _row(view: LayerView) -> dict[str, Any]:
    return {
        "layer": view.layer,
        "sparse": view.route.sparse,
        "reason": view.route.reason,
        "heads": view.heads,
        "drawings": {str(h): render(view.plan, h=h).splitlines() for h in view.drawn},
    }


def _title(view: LayerView, h: int) -> str:
    facts = view.heads[h]
    return (
        f"Layer {view.layer}, head {h}: {100 * facts['density']:.0f} % computed, "
        f"{facts['retained_mass_mean']:.3f} of the probability kept"
    )


def _write(content: dict[str, Any], views: list[LayerView], folder: Path) -> None:
    from ..lab.analysis.plots import Panel, draw_head, draw_report, head_picture

    (folder / "inspect.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    coverage, rows = content["config"]["coverage"], f"{content['rows']} random rows"
    density, mean, _, least, degree = (_values(views, x) for x in FACTS)
    panels = [
        Panel.sparsity_degree(degree, coverage), Panel.retained_mass(mean, f"mean over {rows}"),
        Panel.cra(least, f"least of {rows}"),
    ]  # fmt: skip
    title = f"{content['model']}, a prompt of {content['prompt_tokens']:,} tokens"
    summary = (
        f"{100 * degree.mean():.1f} % of the attention could be dropped with "
        f"{100 * coverage:g} % of the probability of every row kept; in single heads "
        f"{100 * degree.min():.1f} to {100 * degree.max():.1f} %.\nThe plans compute "
        f"{100 * density.mean():.1f} % and keep {100 * mean.mean():.1f} %."
    )
    figure = draw_report(title, summary, [x.layer for x in views], panels)
    figure.savefig(folder / "heads.png")
    for view in views:
        for h in view.drawn:
            figure = draw_head(head_picture(view.inputs, view.plan, h, _title(view, h)))
            figure.savefig(folder / f"layer{view.layer:02}_head{h:02}.png")


def _values(views: list[LayerView], name: str) -> Tensor:
    """One statistic of all layers and heads: fp64 `[L, H]`."""
    rows = [[head[name] for head in view.heads] for view in views]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _print_layers(views: list[LayerView], coverage: float) -> None:
    table = Table(caption="means over heads; min: of all heads and rows", caption_justify="left")
    for name in ("layer", "density", "kept", "p5", "min (CRA)", f"SD({coverage:g})", "in heads"):
        table.add_column(name, justify="right")
    for name, part in [*((str(x.layer), [x]) for x in views), ("all", views)]:
        density, mean, p5, least, degree = (_values(part, x) for x in FACTS)
        values = [float(x) for x in (density.mean(), mean.mean(), p5.mean(), least.min())]
        values.append(float(degree.mean()))
        span = f"{float(degree.min()):.3f} to {float(degree.max()):.3f}"
        table.add_row(name, *(f"{x:.3f}" for x in values), span)
    Console(highlight=False, soft_wrap=True, markup=False).print(table)


def _print_view(view: LayerView, coverage: float) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    kind = "sparse" if view.route.sparse else "dense"
    console.print(f"\nlayer {view.layer}", style="bold", end="")
    console.print(f", would run {kind}: {view.route.reason}")
    table = Table()
    names = ("head", "density", "kept: mean", "p5", "min (CRA)", f"SD({coverage:g})", "dense rows")
    for name in names:
        table.add_column(name, justify="right")
    for facts in view.heads:
        values = [float(x) for name, x in facts.items() if name != "head"]
        table.add_row(str(facts["head"]), *(f"{x:.3f}" for x in values))
    console.print(table)
    for h in view.drawn:
        print(
            f"\n{_title(view, h)}\nrows: queries, columns: keys; from ' ' none to '#' all computed"
        )
        print(render(view.plan, h=h))
