"""From options to what a command works on: configuration, model and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from .._extras import require
from ..config import SampleAttentionConfig, Tuned, names_tuned
from ..errors import InvalidConfig, InvalidInput, PromptTooLong
from ..lab.models import LoadedModel, batch_of_one, load_model
from ..lab.models.tokens import encode_prompt
from .console import step
from .machine import Machine, choose_device

WORDS = {"none": None, "true": True, "false": False}


def build_config(
    preset: str, coverage: float | None, assignments: Sequence[str] | None
) -> SampleAttentionConfig:
    """The preset with `coverage` and every `KEY=VALUE` applied.

    Raises:
        InvalidConfig: unknown preset or field, or a value out of range.
    """
    return SampleAttentionConfig.preset(preset, **_overrides(coverage, assignments))


def build_rule(
    preset: str, coverage: float | None, assignments: Sequence[str] | None, held_out: int = 0
) -> SampleAttentionConfig | Tuned:
    """`build_config`, or a tuned configuration with the fields of all its intervals replaced.

    Args:
        preset: its name.
        coverage: in the place of the preset's.
        assignments: any other fields, as `KEY=VALUE`.
        held_out: rows that a guard measures on, where the assignments name none.

    Raises:
        InvalidConfig: unknown name or field, or a value out of range.
    """
    overrides = _overrides(coverage, assignments)
    if overrides.get("guard") is not None and held_out:
        overrides.setdefault("held_out", held_out)
    if not names_tuned(preset):
        return SampleAttentionConfig.preset(preset, **overrides)
    return Tuned.load(preset).with_fields(overrides)


def config_for(
    rule: SampleAttentionConfig | Tuned,
    prompt_tokens: int,
    layer: tuple[int, int] | None = None,
) -> SampleAttentionConfig:
    """The configuration for a prompt of this length; in a layer, of so many, with what that keeps.

    Raises:
        InvalidConfig: tuned for a model without such a layer.
    """
    placed = rule if layer is None else rule.for_layer(*layer)
    return placed.for_length(prompt_tokens) if isinstance(placed, Tuned) else placed


def check_rule(rule: SampleAttentionConfig | Tuned, loaded: LoadedModel) -> None:
    """Check before any prefill that a tuned configuration has the layers of the model.

    Raises:
        InvalidConfig: it has not.
    """
    text: Any = loaded.model.config.get_text_config(decoder=True)
    if isinstance(rule, Tuned):
        rule.for_layer(int(text.num_hidden_layers) - 1, int(text.num_hidden_layers))


def _overrides(coverage: float | None, assignments: Sequence[str] | None) -> dict[str, Any]:
    accepted = [field.name for field in fields(SampleAttentionConfig)]
    overrides: dict[str, Any] = {} if coverage is None else {"coverage": coverage}
    for assignment in assignments or ():
        name, separator, text = assignment.partition("=")
        if not separator or name not in accepted:
            raise InvalidConfig(
                f"--config {assignment}: write KEY=VALUE with a KEY of {', '.join(accepted)}"
            )
        overrides[name] = _parse_value(name, text.strip())
    return overrides


def _parse_value(name: str, text: str) -> float | bool | None:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise InvalidConfig(f"--config {name}={text}: a value is a number, true, false or none")


def parse_indices(name: str, text: str | None) -> tuple[int, ...] | None:
    """The indices of a list such as `0,5,12`; None when none is given.

    Raises:
        InvalidInput: not a list of indices.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InvalidInput(
            f"--{name} {text}: write whole numbers with commas between them, as in 0,5,12"
        )
    return tuple(sorted({int(part) for part in parts}))


def load(model: str, machine: Machine) -> LoadedModel:
    """Load a model, by name as `load_model` takes it, after setting the number of threads.

    Raises:
        InvalidInput: unknown dtype, or a device that this machine does not have.
        ModelNotFound: there is no such model.
    """
    dtype = machine.chosen_dtype()
    machine.set_threads()
    logging: Any = require("transformers.utils.logging", "transformers")
    logging.disable_progress_bar()  # ours is shown
    with step(f"loading {model}"):
        return load_model(model, dtype=dtype, device=choose_device(machine.device))


def read_prompt(path: Path) -> str:
    """The text of a prompt file.

    Raises:
        InvalidInput: the file is empty or not UTF-8.
        OSError: the file cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the prompt file {path} is not UTF-8 text: {error.reason}") from error
    if not text.strip():
        raise InvalidInput(f"the prompt file {path} is empty")
    return text


def tokenized(loaded: LoadedModel, text: str, chat: bool | None) -> torch.Tensor:
    """A prompt as tokens: int64 `[1, S]` on the model's device.

    Raises:
        InvalidInput: there is no chat template to apply, or it cannot be applied.
    """
    if chat and loaded.tokenizer.chat_template is None:
        raise InvalidInput(f"{loaded.name} has no chat template; leave out --chat")
    return batch_of_one(
        loaded, encode_prompt(loaded.tokenizer, text, chat=chat is not False).token_ids
    )


def check_length(loaded: LoadedModel, prompt_tokens: int, new_tokens: int) -> None:
    """Check that prompt and answer fit the context of the model.

    Raises:
        PromptTooLong: they do not.
    """
    if prompt_tokens + new_tokens > loaded.context_length:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens and {new_tokens} new ones may follow; "
            f"{loaded.name} accepts {loaded.context_length} together: shorten the prompt, lower "
            "--max-new-tokens, or choose a model with a longer context"
        )
