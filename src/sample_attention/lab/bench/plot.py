"""Records as a picture: speed-up of attention, and time to first token, by length of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ..._extras import require
from ...errors import InvalidInput
from ..pictures import LINE_COLOURS, LINE_MARKERS, save_figure
from ..records import Record, machine_of
from .tables import rule_of, speedup_of

SPEEDUP = "attention: speed-up over the fastest dense"
TTFT_AXIS = "whole prefill: time to first token (s)"

Point = tuple[str, int, float]
"""Name of the line, length, value."""


def plot_records(records: Sequence[Record], path: Path) -> None:
    """Draw the records; the suffix of the path chooses the format, PNG or SVG among others.

    Lines are means over the layers of a model, bars their least and their most.

    Raises:
        InvalidInput: there are only records of kernels, which have no picture, or no picture has
            the suffix.
        MissingExtra: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figures: Any = require("matplotlib.figure", "plot")
    check_picture(path)
    panels = _panels(records)
    if not panels:
        raise InvalidInput("records of kernels have no picture; leave out --plot")
    figure = figures.Figure(figsize=(7 * len(panels), 4.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, ((label, machine), points) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, points)
        axis.set(title=machine, ylabel=label, xlabel="prompt length (tokens)", ylim=(0, None))
        if label == SPEEDUP:
            axis.axhline(1, color="#22262e", lw=1)
    save_figure(figure, path)


def check_picture(path: Path) -> None:
    """Check that the suffix of a path names a format that can be drawn.

    Raises:
        InvalidInput: it does not.
        MissingExtra: matplotlib is not installed.
    """
    figures: Any = require("matplotlib.figure", "plot")
    accepted = figures.Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in accepted:
        raise InvalidInput(
            f"the picture {path} has the suffix '{path.suffix}'; accepted: "
            f"{', '.join(f'.{name}' for name in sorted(accepted))}"
        )


def _panels(records: Sequence[Record]) -> dict[tuple[str, str], list[Point]]:
    """Points by what is measured and by machine, so that no picture compares machines."""
    panels: dict[tuple[str, str], list[Point]] = {}
    for record in records:
        if "ttft_ms" in record:
            label, value = TTFT_AXIS, record["ttft_ms"] / 1000
            name = f"{record['model']}, {record['method']}"
        elif "kernel" in record:
            continue  # a table says more of kernels than a line over lengths
        else:
            label, value, name = SPEEDUP, speedup_of(record), _attention_line(record)
        point = name, int(record["seq_len"]), value
        panels.setdefault((label, machine_of(record)), []).append(point)
    return panels


def _attention_line(record: Record) -> str:
    """Layers of a model are one line; whatever else was chosen tells lines apart."""
    source = str(record["input"]).removeprefix("captured:")
    if record.get("preset") is None:
        return f"{source} lists, attend only"
    return f"{source.rsplit('/', 1)[0]}, {rule_of(record)} {record['coverage']:g}"


def _draw_panel(axis: Any, points: list[Point]) -> None:  # noqa: ANN401
    lines: dict[str, dict[int, list[float]]] = {}
    for name, length, value in points:
        lines.setdefault(name, {}).setdefault(length, []).append(value)
    for i, (name, values) in enumerate(lines.items()):
        colour, marker = LINE_COLOURS[i % len(LINE_COLOURS)], LINE_MARKERS[i % len(LINE_MARKERS)]
        lengths = sorted(values)
        heights = [mean(values[length]) for length in lengths]
        axis.plot(lengths, heights, color=colour, marker=marker, lw=2, label=name)
        below = [y - min(values[x]) for x, y in zip(lengths, heights, strict=True)]
        above = [max(values[x]) - y for x, y in zip(lengths, heights, strict=True)]
        bars = (below, above)
        axis.errorbar(lengths, heights, bars, ls="", color=colour, capsize=3, alpha=0.7)
    measured = [length for _, length, _ in points]
    powers = range(min(measured).bit_length() - 1, max(measured).bit_length())
    ticks = [2**i for i in powers]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [_length(n) for n in ticks])
    axis.minorticks_off()
    axis.grid(axis="y", color="#e3e5e9")
    axis.legend(frameon=False, fontsize=8)


def _length(tokens: int) -> str:
    return f"{tokens / 1024:g}K" if tokens >= 1024 else str(tokens)
