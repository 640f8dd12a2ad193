"""Longer prompts than a model was made for: rotary positions rescaled by YaRN, arXiv 2309.00071."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import InvalidInput
from .load import LoadedModel


def extend_context(loaded: LoadedModel, factor: float) -> LoadedModel:
    """Let a model read `factor` times its context; changes it in place, for short prompts too.

    Args:
        loaded: a model whose only position encoding is plain rotary embedding.
        factor: above 1; Qwen2.5 is documented to work at 4.

    Returns:
        The model with its new context length.

    Raises:
        InvalidInput: a factor of 1 or less, or a model with other positions.
    """
    if not factor > 1:
        raise InvalidInput(f"the YaRN factor is {factor}; it must be above 1")
    model: Any = loaded.model
    decoder, config = model.get_decoder(), model.config.get_text_config(decoder=True)
    known: Any = getattr(config, "rope_parameters", None) or {}
    if known.get("rope_type") != "default" or not hasattr(decoder, "rotary_emb"):
        raise InvalidInput(
            f"the positions of {loaded.name} are {known.get('rope_type', 'not rotary')}; YaRN is "
            "accepted for plain rotary embedding (rope_type 'default')"
        )
    length = int(factor * loaded.context_length)
    config.rope_parameters = {
        **known, "rope_type": "yarn", "factor": float(factor),
        "original_max_position_embeddings": loaded.context_length,
    }  # fmt: skip
    config.max_position_embeddings = length
    decoder.rotary_emb = type(decoder.rotary_emb)(config).to(model.device)
    return replace(loaded, context_length=length)
