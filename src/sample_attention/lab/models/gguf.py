"""A GGUF file of the llama family as a transformers model, in seconds.

The blocks are decoded by the `gguf` package; names, head order and configuration are translated
here. Files of architecture `llama` store the rows of each q and k head interleaved for another
form of RoPE: row `2i + j` of the file is row `j * D/2 + i` of transformers (`D` = head
dimension), see `deinterleave_heads`. `qwen2` files keep the order.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ..._extras import require
from .gguf_header import GGUFHeader, TensorInfo, UnsupportedGGUF
from .gguf_keys import check_network_keys

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MODEL_CLASSES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_CONFIG_CLASSES: Final = {"llama": "LlamaConfig", "qwen2": "Qwen2Config"}
_TOP_NAMES: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME: Final = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_TOP_NAME: Final = re.compile(r"(\w+)\.(weight|bias)")
_STOP_KEYS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")


def load_gguf_model(header: GGUFHeader, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build the transformers model that a GGUF file describes, on the CPU, in evaluation mode.

    Without an `output.weight` in the file the output layer is tied to the embedding.

    Args:
        header: what `read_gguf_header` returned.
        dtype: type of the parameters; blocks are decoded in fp32 and rounded once.

    Raises:
        UnsupportedGGUF: an architecture, tensor, type or metadata key that is not known here.
        MissingExtra: `transformers` or `gguf` is not installed.
    """
    transformers = require("transformers", "transformers")
    config = model_config(header)
    model_class = getattr(transformers, MODEL_CLASSES[header.architecture])
    state = {
        parameter_name(header, name): _parameter(header, info, config).to(dtype)
        for name, info in header.tensors.items()
    }
    expected = _parameter_names(model_class, config)
    if config.tie_word_embeddings:
        expected.discard("lm_head.weight")
    if expected != state.keys():
        raise UnsupportedGGUF(
            f"{header.path} does not hold the parameters of {model_class.__name__}: "
            f"missing {sorted(expected - state.keys())}, "
            f"not expected {sorted(state.keys() - expected)}"
        )
    model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=stop_token_ids(header),
        pad_token_id=config.pad_token_id,
    )
    return model.eval()


def model_config(header: GGUFHeader) -> PreTrainedConfig:
    """Translate the metadata of a GGUF file to the configuration of its transformers model.

    Raises:
        UnsupportedGGUF: an architecture or a metadata key that is not known here.
    """
    transformers = require("transformers", "transformers")
    name = header.architecture
    if name not in MODEL_CLASSES:
        raise UnsupportedGGUF(
            f"{header.path} has the architecture '{name}'; {sorted(MODEL_CLASSES)} are loaded; "
            "give a transformers folder or hub id instead"
        )
    hidden = header.integer(f"{name}.embedding_length")
    num_heads = header.integer(f"{name}.attention.head_count")
    head_dim = header.integer(f"{name}.attention.key_length", hidden // num_heads)
    check_network_keys(header, head_dim)
    settings: dict[str, Any] = {
        "vocab_size": _tensor(header, "token_embd.weight").shape[0],
        "hidden_size": hidden,
        "intermediate_size": header.integer(f"{name}.feed_forward_length"),
        "num_hidden_layers": header.integer(f"{name}.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": header.integer(f"{name}.attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": header.integer(f"{name}.context_length"),
        "rms_norm_eps": header.real(f"{name}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": header.real(f"{name}.rope.freq_base", 10000.0),
        },
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": header.token_id("bos_token_id"),
        "eos_token_id": header.token_id("eos_token_id"),
        "pad_token_id": header.token_id("padding_token_id"),
    }
    if name == "llama":
        settings["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        settings["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    return getattr(transformers, _CONFIG_CLASSES[name])(**settings)


def parameter_name(header: GGUFHeader, name: str) -> str:
    """Return the transformers name of the tensor called `name` in the file.

    Raises:
        UnsupportedGGUF: the tensor has no counterpart (mixture of experts, RoPE factors, ...).
    """
    if layer := _LAYER_NAME.fullmatch(name):
        index, part, kind = layer.groups()
        if part in _LAYER_NAMES:
            return f"model.layers.{index}.{_LAYER_NAMES[part]}.{kind}"
    elif (top := _TOP_NAME.fullmatch(name)) and top[1] in _TOP_NAMES:
        return f"{_TOP_NAMES[top[1]]}.{top[2]}"
    raise UnsupportedGGUF(
        f"{header.path} holds the tensor '{name}', which no plain {header.architecture} model has; "
        "give a transformers folder or hub id instead"
    )


def deinterleave_heads(rows: Tensor, num_heads: int) -> Tensor:
    """Put the rows of a q or k projection of a `llama` file in the order of transformers.

    With head dimension D, output row `j * D/2 + i` of a head is input row `2i + j`, j in {0, 1}.

    Args:
        rows: weight [num_heads * D, in_features] or bias [num_heads * D].
        num_heads: heads of this projection (key-value heads for k).

    Returns:
        A tensor of the same shape.
    """
    half = rows.shape[0] // num_heads // 2
    pairs = rows.reshape(num_heads, half, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def decode_tensor(header: GGUFHeader, info: TensorInfo) -> Tensor:
    """Read one tensor of the file and decode it.

    Returns:
        fp32 tensor of shape `info.shape`.

    Raises:
        UnsupportedGGUF: a type that the `gguf` package cannot decode, or a file that is cut off.
    """
    gguf, np = require("gguf", "gguf"), require("numpy", "gguf")
    try:
        kind = gguf.GGMLQuantizationType(info.type_id)
        stored_shape = gguf.quant_shape_to_byte_shape(info.shape, kind)
        stored = np.memmap(
            header.path, dtype=np.uint8, mode="r", offset=info.offset, shape=stored_shape
        )
        # As a plain array: slices of a memory map cost a Python call each.
        values = gguf.dequantize(stored.view(np.ndarray), kind)
    except (ValueError, NotImplementedError, gguf.quants.QuantError) as error:
        raise UnsupportedGGUF(
            f"{header.path}: the tensor '{info.name}' (shape {info.shape}, type {info.type_id}) "
            f"cannot be decoded: {error}"
        ) from error
    # The library hands F32 out as a view of the read-only file.
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def stop_token_ids(header: GGUFHeader) -> list[int]:
    """Return the tokens that end an answer: end of text, of turn and of message, where named."""
    stops = [header.token_id(key) for key in _STOP_KEYS]
    return list(dict.fromkeys(token for token in stops if token is not None))


def _parameter(header: GGUFHeader, info: TensorInfo, config: PreTrainedConfig) -> Tensor:
    values = decode_tensor(header, info)
    if header.architecture != "llama":
        return values
    if ".attn_q." in info.name:
        return deinterleave_heads(values, config.num_attention_heads)
    if ".attn_k." in info.name:
        return deinterleave_heads(values, config.num_key_value_heads)
    return values


def _tensor(header: GGUFHeader, name: str) -> TensorInfo:
    if name not in header.tensors:
        raise UnsupportedGGUF(f"{header.path} lacks the tensor '{name}': not a language model")
    return header.tensors[name]


def _parameter_names(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> set[str]:
    with torch.device("meta"):
        return {name for name, _ in model_class(config).named_parameters(remove_duplicate=False)}
