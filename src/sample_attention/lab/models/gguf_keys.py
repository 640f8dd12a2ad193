"""Which metadata of a GGUF file is read, which cannot change the result, and which is refused.

Keys of the network stand behind its architecture (`llama.rope.freq_base`), those of the tokenizer
behind `tokenizer.ggml`. A key that no table here knows is refused: it may change what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from .gguf_header import GGUFHeader, MetadataValue, UnsupportedGGUF

READ: Final = frozenset({
    "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.layer_norm_rms_epsilon", "rope.freq_base",
})  # fmt: skip
"""Of the network: what the configuration of the model is made of."""

HARMLESS: Final = frozenset({
    "vocab_size", "pooling_type", "rope.scaling.original_context_length", "rope.scaling.finetuned",
})  # fmt: skip
"""Of the network: stated by tensors too, of other uses, or without effect by themselves."""

NEUTRAL: Final = MappingProxyType({
    "attention.causal": (True,), "attention.sliding_window": (0,), "attention.scale": (0,),
    "attention.output_scale": (0, 1), "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,), "attention.temperature_scale": (0,),
    "attention.shared_kv_layers": (0,), "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0, 1), "rope.scale_linear": (0, 1),
    "rope.scaling.attn_factor": (1,), "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,), "router_logit_softcapping": (0,), "logit_scale": (0, 1),
    "residual_scale": (0, 1), "embedding_scale": (0, 1), "use_parallel_residual": (False,),
    "expert_count": (0,), "expert_used_count": (0,), "nextn_predict_layers": (0,),
    "tensor_data_layout": ("Meta AI original pth",),
})  # fmt: skip
"""Of the network: the values that change nothing; any other is refused."""

SIZES: Final = ("attention.value_length", "rope.dimension_count")
"""Of the network: accepted when they are the head dimension."""

TOKENIZER_READ: Final = frozenset({
    "model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id",
    "eot_token_id", "eom_token_id", "unknown_token_id", "padding_token_id", "add_bos_token",
})  # fmt: skip
TOKENIZER_HARMLESS: Final = frozenset({
    "scores", "token_type_count", "seperator_token_id", "mask_token_id", "prefix_token_id",
    "suffix_token_id", "middle_token_id", "fim_pre_token_id", "fim_suf_token_id",
    "fim_mid_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id",
})  # fmt: skip
TOKENIZER_NEUTRAL: Final = MappingProxyType({
    "add_eos_token": (False,), "add_sep_token": (False,), "add_space_prefix": (False,),
    "remove_extra_whitespaces": (False,),
})  # fmt: skip

TOKENIZER: Final = "tokenizer.ggml"


def check_network_keys(header: GGUFHeader, head_dim: int) -> None:
    """Refuse a file whose network is another than the plain one of its architecture.

    Raises:
        UnsupportedGGUF: a key that is not known, or one whose value changes the network.
    """
    neutral = {**NEUTRAL, **dict.fromkeys(SIZES, (head_dim,))}
    _check(header, header.architecture, READ | HARMLESS, neutral)


def check_tokenizer_keys(header: GGUFHeader) -> None:
    """Refuse a file whose tokenizer does more than cut, merge and begin with one token.

    Raises:
        UnsupportedGGUF: a key that is not known, one whose value changes the tokens, or a token
            that the vocabulary does not have.
    """
    _check(header, TOKENIZER, TOKENIZER_READ | TOKENIZER_HARMLESS, TOKENIZER_NEUTRAL)
    for name in header.metadata:
        key = name.removeprefix(f"{TOKENIZER}.")
        if key != name and key.endswith("token_id"):
            header.token_id(key)


def _check(
    header: GGUFHeader, owner: str, accepted: frozenset[str],
    neutral: Mapping[str, tuple[MetadataValue, ...]],
) -> None:  # fmt: skip
    for full, value in header.metadata.items():
        key = full.removeprefix(f"{owner}.")
        if key == full or key in accepted or value in neutral.get(key, ()):
            continue
        known = " or ".join(map(str, neutral.get(key, ())))
        raise UnsupportedGGUF(
            f"{header.path} has {_shown(value)} under the metadata key '{full}', which is "
            f"{f'accepted as {known} only' if known else 'not known here'}: it may change what is "
            "computed; give a transformers folder or hub id instead"
        )


def _shown(value: MetadataValue) -> str:
    return f"{len(value)} values" if isinstance(value, list) else repr(value)
