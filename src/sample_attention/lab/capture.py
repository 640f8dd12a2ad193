"""Capture q, k and v of chosen layers of a transformers model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .._extras import require
from ..errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class AttentionInputs:
    """What the attention of one layer was given.

    Attributes:
        q: `[B, H, Sq, D]`, after position encoding.
        k: `[B, Hkv, Skv, D]`, with the cached keys, after position encoding.
        v: like k.
        scale: multiplies q.k.
        mask: as the model passed it; None: every row sees all keys up to its own.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    mask: Tensor | None = None


@contextmanager
def capture_attention(
    model: PreTrainedModel, layers: Collection[int]
) -> Generator[dict[int, AttentionInputs]]:
    """Keep what the attention of `layers` is given inside a `with` block; results do not change.

    Works with the attention implementation that the model uses when the block begins, so also
    inside `sample_attention_prefill`. Decoding steps (one query) are passed over; of several
    prefills the last one is kept. Tensors are copies on the model's device.

    Args:
        model: a causal language model of transformers.
        layers: indices of the layers.

    Yields:
        The inputs by layer, filled as the model runs.

    Raises:
        InvalidInput: a layer that the model does not have.
        MissingExtra: transformers is not installed.
    """
    interfaces: Any = require("transformers", "transformers")
    text: Any = model.config.get_text_config(decoder=True)
    check_layers(layers, int(text.num_hidden_layers))
    before = str(text._attn_implementation or "sdpa")
    name = "sdpa" if before == "eager" else before  # eager attention has no entry to wrap
    table = interfaces.AttentionInterface()
    captured: dict[int, AttentionInputs] = {}
    original = table[name]
    model.set_attn_implementation(name)
    watch = _Watch(original, model, frozenset(layers), captured)
    interfaces.AttentionInterface.register(name, watch)
    try:
        yield captured
    finally:
        interfaces.AttentionInterface.register(name, original)
        model.set_attn_implementation(before)


def check_layers(layers: Collection[int], num_layers: int) -> None:
    """Check that a model has these layers.

    Raises:
        InvalidInput: it does not.
    """
    wrong = sorted(x for x in layers if not 0 <= x < num_layers)
    if wrong:
        raise InvalidInput(f"the model has no layer {wrong[0]}; accepted: 0 to {num_layers - 1}")


@dataclass(frozen=True)
class _Watch:
    """An attention function that keeps what it is given, then calls the original."""

    original: Callable[..., object]
    model: nn.Module
    layers: frozenset[int]
    captured: dict[int, AttentionInputs]

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
        *arguments: object, **keywords: object,
    ) -> object:  # fmt: skip
        layer = int(getattr(module, "layer_idx", -1))
        if layer in self.layers and q.shape[2] > 1 and module in self.model.modules():
            given = keywords.get("scaling")
            scale = given if isinstance(given, float) else float(q.shape[-1]) ** -0.5
            kept = [x.detach().clone() for x in (q, k, v)]
            self.captured[layer] = AttentionInputs(kept[0], kept[1], kept[2], scale, mask)
        return self.original(module, q, k, v, mask, *arguments, **keywords)
