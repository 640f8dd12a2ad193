"""Models to try the package on: loading by name, pinned public weights, and real text."""

from .context import extend_context
from .load import LoadedModel, batch_of_one, load_model
from .prompt import Prompt, load_prompted, text_tokens
from .text import NeedlePrompt, needle_prompt, reference_text
from .weights import PINNED_WEIGHTS, PinnedWeights, WeightsError, fetch_weights

__all__ = [
    "PINNED_WEIGHTS",
    "LoadedModel",
    "NeedlePrompt",
    "PinnedWeights",
    "Prompt",
    "WeightsError",
    "batch_of_one",
    "extend_context",
    "fetch_weights",
    "load_model",
    "load_prompted",
    "needle_prompt",
    "reference_text",
    "text_tokens",
]
