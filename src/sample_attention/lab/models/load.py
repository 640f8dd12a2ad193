"""One call that loads a causal language model and its tokenizer from wherever it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..._extras import require
from ...errors import ModelNotFound
from .gguf import load_gguf_model
from .gguf_header import read_gguf_header
from .gguf_tokenizer import load_gguf_tokenizer
from .weights import PINNED_WEIGHTS, fetch_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to generate.

    Attributes:
        model: the transformers model, in evaluation mode, on the device asked for.
        tokenizer: its tokenizer, with the chat template if there is one.
        context_length: the most tokens, prompt and answer together, that it was made for.
        name: the name it was loaded by.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context_length: int
    name: str


def batch_of_one(loaded: LoadedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Tokens as a batch of one on the model's device: int64 `[1, S]`."""
    return torch.tensor([list(token_ids)], dtype=torch.int64, device=loaded.model.device)


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load a causal language model with its tokenizer.

    Args:
        name: one of, tried in this order:
            a key of `PINNED_WEIGHTS`, as in `"smollm2-135m"` (taken from the cache; **downloaded
            when it is not there**, see `fetch_weights`);
            the path of a GGUF file of the llama or qwen2 architecture;
            the path of a folder that transformers wrote;
            a hub id, as in `"owner/model"` (downloaded by transformers when it is not cached).
        dtype: type of the parameters; by default what the files say, and for GGUF files, which
            are quantised, fp32 on the CPU and bf16 elsewhere.
        device: where the parameters go.

    Raises:
        ModelNotFound: none of the above, or a folder whose files are damaged or incomplete.
        UnsupportedGGUF: a GGUF file of a kind that is not supported.
        WeightsError: pinned weights that could not be fetched.
        MissingExtra: `transformers` or `gguf` is not installed.

    Example:
        >>> loaded = load_model("smollm2-135m")  # doctest: +SKIP
        >>> loaded.context_length  # doctest: +SKIP
        8192
    """
    require("transformers", "transformers")
    text = os.fspath(name)
    if text in PINNED_WEIGHTS:
        return _load_gguf(fetch_weights(text), text, dtype, torch.device(device))
    path = Path(text).expanduser()
    if path.is_file():
        return _load_gguf(path, text, dtype, torch.device(device))
    if path.is_dir() and not (path / "config.json").is_file():
        raise _not_found(text, "the folder has no config.json")
    if path.suffix == ".gguf" and not path.is_dir():
        raise _not_found(text, "there is no such file")
    return _load_pretrained(str(path) if path.is_dir() else text, text, dtype, device)


def _load_gguf(
    path: Path, name: str, dtype: torch.dtype | None, device: torch.device
) -> LoadedModel:
    header = read_gguf_header(path)
    tokenizer = load_gguf_tokenizer(header)
    default = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = load_gguf_model(header, dtype=dtype or default)
    length = header.integer(f"{header.architecture}.context_length")
    nn.Module.to(model, device)
    return LoadedModel(model, tokenizer, length, name)


def _load_pretrained(
    source: str, name: str, dtype: torch.dtype | None, device: str | torch.device
) -> LoadedModel:
    transformers = require("transformers", "transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype or "auto", output_loading_info=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise _not_found(name, _first_line(error)) from error
    except Exception as error:  # damaged files raise errors of every kind, some a bare Exception
        raise _damaged(name, f"{type(error).__name__}, {_first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise _damaged(name, f"{len(missing)} parameters are missing, such as {missing[0]}")
    length = trained_length(model.config.get_text_config()) or int(tokenizer.model_max_length)
    return LoadedModel(model.to(device).eval(), tokenizer, length, name)


def trained_length(config: PreTrainedConfig) -> int:
    """The longest prompt that a text configuration states, stretched RoPE counted; 0: it does not.

    `max_position_embeddings` may be the length before RoPE was stretched: the longer one holds.
    """
    ropes: Any = getattr(config, "rope_parameters", None) or {}
    # Models whose layers differ state one set of parameters for each kind of layer.
    kinds = [x for x in ropes.values() if isinstance(x, dict)] or [ropes]
    stretched = [
        int((x.get("factor") or 1) * (x.get("original_max_position_embeddings") or 0))
        for x in kinds
    ]
    return max(int(getattr(config, "max_position_embeddings", None) or 0), *stretched)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _damaged(name: str, reason: str) -> ModelNotFound:
    return ModelNotFound(
        f"cannot load the model '{name}': its files are damaged, incomplete, or of a kind that "
        f"transformers does not load ({reason}); fetch or save them again"
    )


def _not_found(name: str, reason: str) -> ModelNotFound:
    return ModelNotFound(
        f"cannot load the model '{name}': {reason}; accepted are a pinned key "
        f"({', '.join(PINNED_WEIGHTS)}), the path of a GGUF file, a folder with config.json, "
        "or a hub id 'owner/model'; check the spelling"
    )
