"""A comparison as JSON, as a table and as a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .._extras import require
from ..config import Config, Tuned
from ..integrations.recording import LayerStatistics
from ..lab.generation import WARM_UP_KEYS, WARM_UP_TOKENS
from ..lab.models import LoadedModel
from ..lab.records import Provenance
from .closing import answer_words, closing_words
from .comparison import DENSE, DENSE_IMPLEMENTATION, SPARSE, Comparison, compare
from .console import messages

REPORT_DIGITS = 6

DEFINITIONS = {
    "ttft_s": "seconds from the prompt's tokens to the first new token: the whole prefill of the "
    "model, selection included, without loading, tokenizing and warming up; median of ttft_runs_s",
    "density": "computed pairs of query and key / causal pairs, mean over layers and heads; the "
    "pairs that selecting looks at are part of ttft_s and not of density",
    "retained_mass": "probability that dense attention gives to the computed keys of a row; "
    "measured on held-out rows in a prefill of its own. mean and p5: mean over the sparse layers "
    "and heads of each head's mean and 5th percentile; min: the worst row of all",
}


@dataclass(frozen=True)
class ComparisonOptions:
    """How a comparison is made and shown.

    Attributes:
        config: of the sparse runs.
        max_new_tokens: longest answer.
        held_out_rows: rows per segment for the statistics.
        repeats: timed runs of each kind.
        output: folder for the report; None: no files.
        as_json: print JSON on stdout, and nothing else there.
    """

    config: Config | Tuned
    max_new_tokens: int = 32
    held_out_rows: int = 4
    repeats: int = 1
    output: Path | None = None
    as_json: bool = False


@dataclass(frozen=True)
class Report:
    """A comparison in the form that is printed and written.

    Attributes:
        comparison: the measurements.
        content: what `report.json` holds.
    """

    comparison: Comparison
    content: dict[str, Any]


def prepare_output(options: ComparisonOptions) -> None:
    """Fail now rather than after minutes of work.

    Raises:
        MissingExtra: pictures are asked for without matplotlib.
        OSError: the folder cannot be made.
    """
    if options.output is not None:
        require("matplotlib", "plot")
        options.output.mkdir(parents=True, exist_ok=True)


def report_on(loaded: LoadedModel, token_ids: Tensor, options: ComparisonOptions) -> Report:
    """Compare both ways on a prompt, int64 `[1, S]`."""
    comparison = compare(
        loaded, token_ids, options.config, max_new_tokens=options.max_new_tokens,
        held_out_rows=options.held_out_rows, repeats=options.repeats,
    )  # fmt: skip
    return build_report(loaded, comparison, options.max_new_tokens)


def publish(report: Report, options: ComparisonOptions) -> None:
    """Write the files that are asked for, and print."""
    if options.output is not None:
        write_report(report, options.output)
    if options.as_json:
        print(json.dumps(report.content, ensure_ascii=False))
        return
    print_report(report)
    if options.output is not None:
        messages().print(
            f"wrote {options.output / 'report.json'} and {options.output / 'report.png'}"
        )


def build_report(loaded: LoadedModel, comparison: Comparison, max_new_tokens: int) -> Report:
    """Put measurements, texts and their origin together."""
    tokenizer: Any = loaded.tokenizer
    model: Any = loaded.model
    texts = {
        kind: str(tokenizer.decode(list(runs[0].token_ids), skip_special_tokens=True))
        for kind, runs in comparison.runs.items()
    }
    sparse = [x for x in comparison.layers if x.route.sparse]
    content = {
        "prompt_tokens": comparison.prompt_tokens,
        "max_new_tokens": max_new_tokens,
        "methods": {
            DENSE: {"implementation": DENSE_IMPLEMENTATION, **_timing(comparison, DENSE),
                    "text": texts[DENSE]},
            SPARSE: {
                **_timing(comparison, SPARSE),
                "text": texts[SPARSE],
                "density": _rounded(torch.stack([x.density for x in comparison.layers]).mean()),
                "retained_mass": _summary_of_mass(sparse),
                "sparse_layers": len(sparse),
                "layers": [_layer_row(x) for x in comparison.layers],
            },
        },
        "ttft_speedup": _ratio(comparison),
        "same_text": texts[DENSE] == texts[SPARSE],
        "timing": {
            "order": list(comparison.order),
            "warm_up": f"a dense prefill of up to {WARM_UP_TOKENS} tokens and one sparse attention "
            f"over {WARM_UP_KEYS} random keys, before the first timed run",
            "statistics": f"from an untimed prefill with held_out_rows={comparison.held_out_rows}",
        },
        "model": {
            "name": loaded.name,
            "type": str(model.config.model_type),
            "dtype": str(model.dtype).removeprefix("torch."),
            "context_length": loaded.context_length,
        },
        "config": comparison.config.to_values(),
        "tuned_for": comparison.tuned_for,
        "definitions": DEFINITIONS,
        "provenance": Provenance.collect(model.device).as_row(),
    }  # fmt: skip
    return Report(comparison, content)


def print_report(report: Report) -> None:
    """Print a table and both texts on stdout."""
    content = report.content
    dense, sparse = content["methods"][DENSE], content["methods"][SPARSE]
    mass = sparse["retained_mass"]
    table = Table(title=f"{content['model']['name']}, {content['prompt_tokens']} tokens",
                  title_justify="left", title_style="bold")  # fmt: skip
    table.add_column("")
    for name in (DENSE, SPARSE):
        table.add_column(name.replace("_", "-"), justify="right")
    table.add_row("time to first token", f"{dense['ttft_s']:.2f} s",
                  f"{sparse['ttft_s']:.2f} s ({content['ttft_speedup']:.2f}x)")  # fmt: skip
    table.add_row("attention computed (density)", "100 %", f"{100 * sparse['density']:.0f} %")
    if mass["mean"] is None:
        table.add_row("attention kept (retained mass)", "1", "not measured")
    else:
        table.add_row("attention kept (retained mass), mean", "1", f"{mass['mean']:.3f}")
        table.add_row("  in a head's worst 5 % of rows (p5)", "1", f"{mass['p5']:.3f}")
        table.add_row("  in the worst row of all (min)", "1", f"{mass['min']:.3f}")
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    if not sparse["sparse_layers"]:
        console.print(f"every layer ran dense: {sparse['layers'][0]['reason']}")
    for name in (DENSE, SPARSE):
        label = f"{name.replace('_', '-')}:"
        console.print(f"{label:18}{content['methods'][name]['text'].strip()}")
    console.print(f"same text:        {'yes' if content['same_text'] else 'no'}")
    if "right_answer" in content:
        console.print(f"right answer:     {answer_words(content)}")
    console.print("", *closing_words(content), sep="\n")


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.png`.

    Raises:
        OSError: the folder cannot be written to.
        MissingExtra: matplotlib is not installed.
    """
    from ..lab.analysis.plots import Panel, draw_report, head_picture

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.content, indent=2, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", "utf-8")
    comparison = report.comparison
    density = torch.stack([x.density for x in comparison.layers])
    means = [x.retained_mass_mean for x in comparison.layers]
    panels = [Panel.density(density)]
    if any(x is not None for x in means):
        blank = torch.full_like(density[0], torch.nan)
        mass = torch.stack([blank if x is None else x for x in means])
        panels.append(Panel.retained_mass(mass, "mean over held-out rows"))
    head = None
    layer = comparison.pictured
    if layer is not None and layer.plan is not None and comparison.inputs is not None:
        h = int((layer.density - density.mean()).abs().argmin())
        title = f"Layer {layer.layer}, head {h}: {100 * float(layer.density[h]):.0f} % computed"
        if layer.retained_mass_mean is not None:
            title += f", {float(layer.retained_mass_mean[h]):.3f} of the probability kept"
        head = head_picture(comparison.inputs, layer.plan, h, title)
    title, summary = _headline(report.content)
    layers = [x.layer for x in comparison.layers]
    figure = draw_report(title, summary, layers, panels, head)
    figure.savefig(folder / "report.png")


def _headline(content: dict[str, Any]) -> tuple[str, str]:
    dense, sparse = content["methods"][DENSE], content["methods"][SPARSE]
    device, threads = (content["provenance"][x] for x in ("device", "threads"))
    mass = sparse["retained_mass"]["mean"]
    keeps = "" if mass is None else f" and keeps {100 * mass:.1f} % of its probability"
    same = "the same" if content["same_text"] else "a different"
    return (
        f"SampleAttention on {content['model']['name']}, a prompt of "
        f"{content['prompt_tokens']:,} tokens",
        f"Computes {100 * sparse['density']:.0f} % of the attention{keeps}; writes {same} text as "
        f"dense attention.\nTime to first token: {dense['ttft_s']:.1f} s dense, "
        f"{sparse['ttft_s']:.1f} s sparse ({content['ttft_speedup']:.2f}x), on {device}, "
        f"{threads} thread{'s' if threads > 1 else ''}.",
    )


def _timing(comparison: Comparison, kind: str) -> dict[str, Any]:
    runs = comparison.runs[kind]
    return {
        "ttft_s": round(comparison.ttft_s(kind), REPORT_DIGITS),
        "ttft_runs_s": [round(run.ttft_s, REPORT_DIGITS) for run in runs],
        "decode_s": round(runs[0].decode_s, REPORT_DIGITS),
        "new_tokens": len(runs[0].token_ids),
    }


def _ratio(comparison: Comparison) -> float:
    return round(comparison.ttft_s(DENSE) / comparison.ttft_s(SPARSE), REPORT_DIGITS)


def _summary_of_mass(sparse: list[LayerStatistics]) -> dict[str, float | None]:
    """Over the sparse layers; dense ones keep everything, so without sparse ones it is 1."""
    if not sparse:
        return {"mean": 1.0, "p5": 1.0, "min": 1.0}
    rows = [(x.retained_mass_mean, x.retained_mass_p5, x.retained_mass_min) for x in sparse]
    measured = [tuple(part for part in row if part is not None) for row in rows]
    if not all(len(row) == len(rows[0]) for row in measured):
        return {"mean": None, "p5": None, "min": None}
    mean, p5, least = (torch.stack(part) for part in zip(*measured, strict=True))
    return {"mean": _rounded(mean.nanmean()), "p5": _rounded(p5.nanmean()),
            "min": _rounded(least.min())}  # fmt: skip


def _layer_row(layer: LayerStatistics) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "sparse": layer.route.sparse,
        "reason": layer.route.reason,
        "density": _listed(layer.density),
        "retained_mass_mean": _listed(layer.retained_mass_mean),
        "retained_mass_p5": _listed(layer.retained_mass_p5),
        "retained_mass_min": _listed(layer.retained_mass_min),
    }


def _listed(values: Tensor | None) -> list[float | None] | None:
    """Per head; JSON has no NaN, so heads without a measurement become null."""
    if values is None:
        return None
    return [_rounded(x) if bool(x.isfinite()) else None for x in values]


def _rounded(value: Tensor) -> float:
    return round(float(value), REPORT_DIGITS)
