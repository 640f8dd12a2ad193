"""Which models of transformers can be served: those that call the attention chosen for them.

A model whose attention is written out in its own code asks only for a mask, and takes the answer
"padding alone" for "nothing is hidden". It has to be refused where the mask is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._extras import require
from ..errors import UnsupportedAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "sample_attention"
"""The attention implementation."""

BATCHED = f"flash|{NAME}"
"""The one for continuous batching, which since transformers 5.19 takes no name but of its own and
those with "flash", for which it makes no mask of all pairs; until 5.18 `paged|` before NAME."""

SERVED_ANYWAY = frozenset({"evolla", "llama4_text", "mllama_text_model", "step3p5"})
"""Model types whose decoder needs no mask of pairs, although their classes decline fused attention:
for a part beside it, or for chunks, which are read here."""


def refuse_model(config: object) -> None:
    """Check that the models of a configuration take the chosen attention and a padding mask.

    Raises:
        UnsupportedAttention: they have attention of their own, or read masks of pairs of tokens.
    """
    reason = None if config is None else _refusal(type(config))
    if reason is not None:
        raise UnsupportedAttention(reason)


@functools.cache
def _refusal(config: type) -> str | None:
    kind = getattr(config, "model_type", "unknown")
    for model in _models_of(config):
        name = f"{model.__name__} (model type {kind})"
        if not model._can_set_attn_implementation():  # pyright: ignore[reportPrivateUsage]
            return (
                f"{name} computes attention in its own code, which does not call the "
                "implementation that was chosen; use attn_implementation='eager'"
            )
        if not model._supports_flash_attn and kind not in SERVED_ANYWAY:  # pyright: ignore[reportPrivateUsage]
            return (
                f"{name} works on a mask of pairs of tokens, which is never formed here; use "
                "attn_implementation='eager' or 'sdpa'"
            )
    return None


def _models_of(config: type) -> Iterator[type[PreTrainedModel]]:
    """The loaded base classes of a configuration's models; derived ones have what these have."""
    transformers: Any = require("transformers", "transformers")
    waiting = [transformers.PreTrainedModel]
    while waiting:
        for model in waiting.pop().__subclasses__():
            if getattr(model, "config_class", None) is config:
                yield model
            else:
                waiting.append(model)
