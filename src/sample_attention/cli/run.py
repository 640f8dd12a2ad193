"""`sample-attention run`: one prompt, dense and sparse, compared."""

from __future__ import annotations

from pathlib import Path

from .machine import Machine
from .report import ComparisonOptions, prepare_output, publish, report_on
from .setup import check_rule, load, read_prompt, tokenized


def run(
    name: str, prompt_file: Path, machine: Machine, chat: bool | None, options: ComparisonOptions
) -> None:  # fmt: skip
    """Load, compare, and publish.

    Raises:
        SampleAttentionError: bad input, as each step states it.
        OSError: a file that cannot be read or written.
    """
    prepare_output(options)
    text = read_prompt(prompt_file)  # before the model, which takes long to load
    loaded = load(name, machine)
    check_rule(options.config, loaded)
    publish(report_on(loaded, tokenized(loaded, text, chat), options), options)
