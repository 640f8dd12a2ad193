"""A model and the text that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InvalidInput, PromptTooLong
from .context import extend_context
from .load import LoadedModel, load_model
from .text import TEXTS, reference_text
from .tokens import encode, start_tokens


@dataclass(frozen=True)
class Prompt:
    """A model and the text it reads.

    Attributes:
        model: as `load_model` takes it.
        text: a kind of `reference_text`.
        yarn: factor by which `extend_context` stretches the context; None: as it was trained.

    Raises:
        InvalidInput: there is no text of that kind.
    """

    model: str
    text: str = "prose"
    yarn: float | None = None

    def __post_init__(self) -> None:
        """Check the text before the model, which takes long to load."""
        if self.text not in TEXTS:
            raise InvalidInput(f"there is no text '{self.text}'; accepted: {', '.join(TEXTS)}")

    @property
    def text_name(self) -> str:
        """The text as records state it."""
        return TEXTS[self.text]

    @property
    def model_name(self) -> str:
        """The model as records state it: of a path the last part."""
        return Path(self.model).name if Path(self.model).exists() else self.model


def load_prompted(prompt: Prompt, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Load the model of a prompt, with its context stretched if asked for."""
    loaded = load_model(prompt.model, dtype=dtype, device=device)
    return loaded if prompt.yarn is None else extend_context(loaded, prompt.yarn)


def text_tokens(loaded: LoadedModel, kind: str, batch: int, length: int) -> Tensor:
    """Consecutive passages of a text from its start, each begun as the model expects it.

    Returns:
        int64 `[B, S]` on the model's device.

    Raises:
        PromptTooLong: a passage does not fit the model.
        InvalidInput: the text is too short, or there is none of that kind.
    """
    if length > loaded.context_length:
        raise PromptTooLong(
            f"{length} tokens: {loaded.name} accepts {loaded.context_length}; choose a shorter "
            "length, a model with a longer context, or stretch it with --yarn"
        )
    ids, front = encode(loaded.tokenizer, reference_text(kind)), start_tokens(loaded.tokenizer)
    each = length - len(front)
    if len(ids) < batch * each:
        raise InvalidInput(
            f"the text '{kind}' has {len(ids)} tokens and {batch * each} are needed; choose a "
            f"shorter length or another text ({', '.join(TEXTS)})"
        )
    rows = [(*front, *ids[i * each : (i + 1) * each]) for i in range(batch)]
    return torch.tensor(rows, device=loaded.model.device)
