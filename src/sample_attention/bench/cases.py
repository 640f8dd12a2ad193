"""Inputs of the measurements: q, k and v of real models on real text, captured once and kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..analysis import capture_attention
from ..errors import InvalidInput
from ..models import load_model
from ..models.text import reference_text
from ..models.weights import default_cache_dir

TEXT = "python-reference"
"""Name of the text in records: the language reference that every Python ships."""


@dataclass(frozen=True)
class Case:
    """One model on one length, measured on some of its layers.

    Attributes:
        model: a key of the pinned weights.
        seq_len: tokens of the prompt.
        layers: which layers' inputs are measured.
        settings: presets, each with its coverage.
    """

    model: str
    seq_len: int
    layers: tuple[int, ...]
    settings: tuple[tuple[str, float], ...]


_PRESETS = (("default", 0.95), ("default", 0.93), ("paper", 0.95), ("mlsys", 0.95))
_DEFAULTS = (("default", 0.95), ("default", 0.93))

CPU_CASES = (
    Case("smollm2-135m", 8192, (4, 12, 20, 27), _PRESETS),
    Case("qwen2.5-coder-0.5b", 16384, (3, 9, 15), _DEFAULTS),
    Case("qwen2.5-coder-0.5b", 32768, (3, 9, 15), _DEFAULTS[1:]),
)
"""What `make bench-cpu` measures beside the short prompts."""

SHORT_LENGTHS = (128, 256, 512, 1024, 2048, 3072, 4096, 5120, 6144)
"""Prefixes of the first case's inputs, on which sparse must not be slower than dense."""


def captured(case: Case) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Q `[1, H, S, D]`, k and v `[1, Hkv, S, D]` in fp32 by layer, from the cache or a prefill.

    The prefill runs only up to the last layer asked for. The tensors are kept in fp16 in the
    cache folder, under a name that holds the digest of the token ids.

    Raises:
        InvalidInput: the text has fewer tokens than the case asks for.
    """
    loaded = load_model(case.model, dtype=torch.float32)
    ids: list[int] = loaded.tokenizer(reference_text(), verbose=False).input_ids
    if len(ids) < case.seq_len:
        raise InvalidInput(f"the text has {len(ids)} tokens; {case.seq_len} are needed")
    tokens = torch.tensor(ids[: case.seq_len])
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:12]
    layers = "-".join(str(x) for x in case.layers)
    path = default_cache_dir() / f"qkv-{case.model}-{case.seq_len}-{layers}-{digest}.pt"
    if not path.is_file():
        _save(_capture(loaded.model, tokens, case.layers), path)
    kept: dict[int, tuple[Tensor, Tensor, Tensor]] = torch.load(path)
    return {layer: tuple(x.float() for x in qkv) for layer, qkv in kept.items()}  # pyright: ignore[reportReturnType]


def _capture(model: object, tokens: Tensor, layers: tuple[int, ...]) -> dict[int, object]:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise InvalidInput(f"a transformers model is needed, got {type(model).__name__}")
    decoder: Any = model.get_decoder()
    decoder.layers = decoder.layers[: max(layers) + 1]  # later layers cannot change these inputs
    model.config.get_text_config().num_hidden_layers = max(layers) + 1
    with torch.inference_mode(), capture_attention(model, layers) as inputs:
        decoder(tokens[None], use_cache=False)
    return {i: tuple(x.half() for x in (a.q, a.k, a.v)) for i, a in inputs.items()}


def _save(tensors: dict[int, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    torch.save(tensors, partial)
    partial.rename(path)
