"""Models to try the package on: loading by name, pinned public weights, and real text."""

from .context import extend_context
from .load import LoadedModel, load_model
from .text import NeedlePrompt, needle_prompt, reference_text
from .weights import PINNED_WEIGHTS, PinnedWeights, WeightsError, fetch_weights

__all__ = [
    "PINNED_WEIGHTS",
    "LoadedModel",
    "NeedlePrompt",
    "PinnedWeights",
    "WeightsError",
    "extend_context",
    "fetch_weights",
    "load_model",
    "needle_prompt",
    "reference_text",
]
