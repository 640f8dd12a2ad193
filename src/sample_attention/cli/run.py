"""`sample-attention run`: one prompt, dense and sparse, compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .._extras import require
from ..config import Config, Tuned
from ..lab.models import LoadedModel
from .comparison import compare
from .console import messages
from .report import Report, build_report, print_report, write_report
from .setup import ModelOptions, check_rule, load, read_prompt, tokenized


@dataclass(frozen=True)
class RunOptions:
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


def run(place: ModelOptions, prompt_file: Path, options: RunOptions) -> None:
    """Load, compare, and publish.

    Raises:
        SampleAttentionError: bad input, as each step states it.
        OSError: a file that cannot be read or written.
    """
    prepare_output(options)
    text = read_prompt(prompt_file)  # before the model, which takes long to load
    loaded = load(place)
    check_rule(options.config, loaded)
    publish(report_on(loaded, tokenized(loaded, text, place.chat), options), options)


def prepare_output(options: RunOptions) -> None:
    """Fail now rather than after minutes of work.

    Raises:
        MissingExtra: pictures are asked for without matplotlib.
        OSError: the folder cannot be made.
    """
    if options.output is not None:
        require("matplotlib", "plot")
        options.output.mkdir(parents=True, exist_ok=True)


def report_on(loaded: LoadedModel, token_ids: Tensor, options: RunOptions) -> Report:
    """Compare both ways on a prompt, int64 `[1, S]`."""
    comparison = compare(
        loaded, token_ids, options.config, max_new_tokens=options.max_new_tokens,
        held_out_rows=options.held_out_rows, repeats=options.repeats,
    )  # fmt: skip
    return build_report(loaded, comparison, options.max_new_tokens)


def publish(report: Report, options: RunOptions) -> None:
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
