"""Inputs of a real model on real text: q, k and v of some of its layers in a dense prefill."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidInput, PromptTooLong
from ..capture import AttentionInputs, capture_attention
from ..models import PINNED_WEIGHTS, LoadedModel, extend_context, load_model, reference_text
from ..models.text import TEXTS
from ..models.tokens import encode, start_tokens
from ..models.weights import default_cache_dir
from .inputs import Inputs

QKV = tuple[Tensor, Tensor, Tensor]


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
            name = f"captured:{prompt.model_name}/{prompt.text_name}/{layer}"
            yield Inputs(name, q, k, v, (layer, count))


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
