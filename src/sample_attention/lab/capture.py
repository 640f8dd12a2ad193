"""Capture q, k and v of chosen layers of a transformers model while it runs.

`capture_attention` watches any call; `captured_inputs` makes them: dense prefills of real text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._extras import require
from ..errors import InvalidInput
from .inputs import Inputs
from .models import PINNED_WEIGHTS, LoadedModel, Prompt, load_prompted, text_tokens
from .models.weights import default_cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel


CAPTURED = "captured:"
"""How the names of captured inputs begin."""

QKV = tuple[Tensor, Tensor, Tensor]


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


def middle_layers(num_layers: int) -> tuple[int, ...]:
    """The layers at a quarter, half and three quarters of a model."""
    return tuple(sorted({num_layers * i // 4 for i in (1, 2, 3)}))


def captured_inputs(
    prompt: Prompt, layers: Sequence[int] | None, batch: int, lengths: Sequence[int],
    dtype: torch.dtype, device: torch.device,
) -> Iterator[Inputs]:  # fmt: skip
    """What layers are given at each length: attention is causal, so shorter ones are prefixes.

    Args:
        prompt: model and text.
        layers: indices; None: those of `middle_layers`.
        batch: passages of the text side by side.
        lengths: tokens of a passage.
        dtype: of the tensors; the model runs in fp32 on a CPU and in bf16 elsewhere.
        device: where the model runs.

    Yields:
        By length, and for each length by layer.

    Raises:
        PromptTooLong, InvalidInput: see `text_tokens`; a layer that the model does not have, or
            one that is not plain causal attention scaled by `D ** -0.5`.
    """
    count, layers_of_length = _capture(prompt, layers, batch, max(lengths), device)
    for length in lengths:
        for layer, qkv in layers_of_length.items():
            q, k, v = (x[:, :, :length].to(device, dtype) for x in qkv)  # strides as in the model
            name = f"{CAPTURED}{prompt.model_name}/{prompt.text_name}/{layer}"
            yield Inputs(name, q, k, v, (layer, count))


def captured_from(name: str) -> tuple[str, str, int] | None:
    """The model, text and layer that captured inputs of this name come from; None: made up."""
    if not name.startswith(CAPTURED):
        return None
    model, text, layer = name.removeprefix(CAPTURED).rsplit("/", 2)
    return model, text, int(layer)


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
            q_copy, k_copy, v_copy = (x.detach().clone() for x in (q, k, v))
            self.captured[layer] = AttentionInputs(q_copy, k_copy, v_copy, scale, mask)
        return self.original(module, q, k, v, mask, *arguments, **keywords)


def _capture(
    prompt: Prompt, layers: Sequence[int] | None, batch: int, length: int, device: torch.device
) -> tuple[int, dict[int, QKV]]:
    """Count of layers, and what the chosen get; on a CPU kept in fp16 for pinned models."""
    on_cpu = device.type == "cpu"
    loaded = load_prompted(prompt, torch.float32 if on_cpu else torch.bfloat16, device)
    tokens = text_tokens(loaded, prompt.text, batch, length)
    text: Any = loaded.model.config.get_text_config(decoder=True)
    count = int(text.num_hidden_layers)
    chosen = tuple(layers) if layers is not None else middle_layers(count)
    if not on_cpu or prompt.model not in PINNED_WEIGHTS:
        return count, _prefill(loaded, tokens, chosen)
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:12]
    stretched = "" if prompt.yarn is None else f"-yarn{prompt.yarn:g}"
    named = f"{prompt.model}-{length}-{'-'.join(map(str, chosen))}-{digest}{stretched}"
    path = default_cache_dir() / f"qkv-{named}.pt"
    if not path.is_file():
        _save(_prefill(loaded, tokens, chosen), path)
    return count, torch.load(path)


def _prefill(loaded: LoadedModel, tokens: Tensor, layers: tuple[int, ...]) -> dict[int, QKV]:
    model: Any = loaded.model
    decoder, config = model.get_decoder(), model.config.get_text_config(decoder=True)
    with torch.inference_mode(), capture_attention(model, layers) as inputs:
        decoder.layers = decoder.layers[: max(layers) + 1]  # later ones cannot change these inputs
        config.num_hidden_layers = len(decoder.layers)
        decoder(tokens, use_cache=False)
    return {layer: _plain(layer, inputs[layer]) for layer in layers}


def _plain(layer: int, inputs: AttentionInputs) -> QKV:
    if inputs.mask is not None or inputs.scale != inputs.q.shape[-1] ** -0.5:
        raise InvalidInput(
            f"layer {layer} has a mask or scales by {inputs.scale:g}; accepted: plain causal "
            "attention scaled by D ** -0.5"
        )
    return inputs.q, inputs.k, inputs.v


def _save(tensors: dict[int, QKV], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    torch.save({layer: tuple(x.half() for x in qkv) for layer, qkv in tensors.items()}, partial)
    partial.rename(path)
