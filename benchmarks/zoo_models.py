"""Tiny models of every type that transformers lists as a causal or a multimodal language model.

A configuration is made from the default one: its fields are made small by their names, which most
types share, and the few that fit no rule stand in `SPECIAL`. Weights are wide random normals, so
that attention is far from uniform.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import configuration_auto, modeling_auto

VOCABULARY = 99
WINDOW = 24
SEED = 7
STD = 0.17

_NAMES = {
    64: "hidden_size d_model n_embd embed_dim embedding_size word_embed_proj_dim emb_dim dim "
    "hidden_size_global lru_width embedding_dim input_embedding_size output_embedding_size "
    "out_hidden_size projection_dim encoder_hidden_size text_hidden_size attention_hidden_size "
    "projection_hidden_size projector_hidden_size output_dim backbone_hidden_size hidden_dim "
    "mamba_d_ssm thinker_hidden_size decoder_hidden_size image_text_hidden_size vision_dim "
    "patch_embed_hidden_size alignment_intermediate_size image_token_embed_dim input_size "
    "ple_embed_dim decoder_dim codebook_dim vector_quantization_hidden_dimension qformer_size "
    "vision_embed_dim hidden_channels downsample_hidden_size ext_pw_out_channel base_channels "
    "depthwise_separable_out_channel nemo_conv_channels latent_channels d_inner_size "
    "post_conv_in_channels post_conv_mid_channels post_conv_out_channels audio_embed_dim",
    96: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner ffn_hidden_size dff "
    "dense_intermediate_size intermediate_size_mlp dim_ff d_ff d_inner feed_forward_size mlp_dim "
    "projection_intermediate_size block_ff_dim",
    32: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
    "moe_shared_expert_intermediate_size share_expert_dim expert_ffn_hidden_size "
    "kv_lora_rank q_lora_rank o_lora_rank attention_chunk_size local_attention adapter_rank "
    "hidden_size_per_layer_input pronunciation_embed_dim shape_embed_dim prompt_mid_dim "
    "router_hidden_size mamba_chunk_size chunk_size hc_lowrank gated_norm_rank laurel_rank",
    16: "head_dim dim_head d_kv d_head swa_head_dim index_head_dim attention_head_size "
    "mamba_d_state mamba_d_head mamba_head_dim state_size ssm_state_size linear_key_head_dim "
    "linear_value_head_dim linear_head_dim query_pre_attn_scalar resampler_head_dim "
    "resampler_dim_head indexer_head_dim global_head_dim time_step_rank",
    8: "qk_rope_head_dim qk_nope_head_dim v_head_dim mamba_n_heads mamba_num_heads rotary_dim "
    "mamba_dt_rank num_query_tokens latent_query_num resampler_n_latents resampler_num_latents "
    "mamba_head_count",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads "
    "encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads o_group "
    "swa_num_attention_heads linear_num_heads linear_num_value_heads resampler_heads "
    "resampler_n_heads conf_num_attention_heads num_sliding_attention_heads hc_count",
    2: "num_key_value_heads kv_n_heads num_kv_heads swa_num_key_value_heads o_groups "
    "num_global_key_value_heads index_n_heads linear_num_key_heads n_mamba_heads num_experts "
    "num_experts_per_tok n_routed_experts num_local_experts moe_num_experts moe_topk moe_top_k "
    "moe_k num_heads_indexer depth num_encoder_layers encoder_layers resampler_depth "
    "conf_num_hidden_layers num_global_layers heads_per_ngram sliding_window_pattern "
    "index_kpool num_blocks expert_num top_k n_groups type_vocab_size layers "
    "aligner_num_add_layers num_hidden_layers_predictor num_codebooks num_random_blocks "
    "global_attn_every_n_layers no_rope_layer_interval interleave_moe_layer_step top_k_experts",
    1: "n_group topk_group first_k_dense_replace num_dense_layers max_window_layers hc_sinkhorn "
    "moe_layer_start_index moe_layer_end_index insert_layer_id num_hash_layers",
    WINDOW: "sliding_window sliding_window_size keep_window_size attention_window_size",
    256: "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions mem_len "
    "original_max_position_embeddings max_source_positions context_length rel_extent "
    "num_position_embeddings pronunciation_vocab_size shape_vocab_size ngram_vocab_size_base "
    "encoder_hash_byte_group_vocab codebook_vocab_size",
    VOCABULARY: "vocab_size vocab_size_per_layer_input audio_vocab_size",
    512: "index_topk",
    56: "image_size",
    14: "patch_size",
}
SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}
LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
    "num_decoder_layers",
)  # fmt: skip
VALUES: dict[str, object] = {
    "is_decoder": True, "use_sliding_window": True, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "use_mamba_kernels": False, "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}  # fmt: skip
"""What a field is set to where a type has it and its default is not None."""

_SECTIONS = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
_MIXED = ["sliding_attention", "full_attention"]
_EXPERTS = {"n_routed_experts": 2, "num_experts_per_tok": 2, "n_shared_experts": 1}
_INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64,
    "indexer_compress_ratio": 2, "output_gate_type": "sigmoid",
}  # fmt: skip
_GRANITE = {
    "model_type": "granite", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
_BOTH = {"full_attention": _SECTIONS, "sliding_attention": _SECTIONS}
SPECIAL: dict[str, dict[str, object]] = {
    "bamba": {"attn_layer_indices": [1]},
    "chameleon": {"vocabulary_map": {"<image>": 98}},
    "cohere_compass": {
        "text_config.rope_parameters": _BOTH, "text_config.layer_types": _MIXED,
    },
    "cohere_compass_text": {"rope_parameters": _BOTH, "layer_types": _MIXED},
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"], "text_config.num_experts_per_tok": 2,
        "text_config.n_group": 1, "text_config.topk_group": 1,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 2, "moe_top_k": 2,
        },
    },
    "deepseek_v2": {**_EXPERTS, "n_group": 1, "topk_group": 1},
    "diffusion_gemma": {
        "text_config.num_experts": 2, "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 32,
    },
    "dots1": {**_EXPERTS, "layer_types": _MIXED},
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters": {**_SECTIONS, "mrope_section": [3, 3, 2]},
        "text_config.moe_intermediate_size": [32, 32],
    },
    "falcon_h1": {"mamba_n_heads": 4},
    "fun_asr_nano": {"adaptor_config.intermediate_size": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.5]},
    "glm5_next": {"text_config.qk_rope_head_dim": 0, "text_config.qk_nope_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "granite4_vision": {
        "text_config": _GRANITE, "spatial_target_layers": [0, 1], "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0]],
    },
    "hunyuan_vl": {"text_config.rope_parameters": {**_SECTIONS, "mrope_section": [2, 2, 2, 2]}},
    "inkling_mm_model": {"vision_config.patch_size": 40, "vision_config.num_hidden_layers": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kyutai_speech_to_text": {"codec_config.upsample_groups": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"num_hidden_layers": 4, "head_dim": 8, "qk_head_dim": 16},
    "mamba2": {"num_heads": 8},
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "qwen4_exp": {f"text_config.{name}": x for name, x in _INDEXER.items()},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 4},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "hash_seed": 1},
    "step3p7": {"text_config.sliding_window": WINDOW, "text_config.num_local_experts": 2,
        "text_config.layer_types": _MIXED, "text_config.rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
    "xlstm": {"num_heads": 4, "chunk_size": 16, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "qwen2_5_omni_thinker": {
        "text_config.rope_parameters": _SECTIONS, "vision_start_token_id": 94,
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 94},
    "mllama": {"text_config.cross_attention_layers": [1]},
    **{
        name: {"text_config.rope_parameters": _SECTIONS}
        for name in (
            "paddleocr_vl", "qwen2_5_vl", "qwen2_vl", "video_llama_3",
        )
    },
    **{
        name: {"text_config.rope_parameters": {**_SECTIONS, "partial_rotary_factor": 1.0}}
        for name in ("glm46v", "glm4v", "glm4v_moe", "glm_ocr", "glmga")
    },
}  # fmt: skip
"""Fields by model type, for what has no rule; of parts by `part.field`."""


_CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
_MULTIMODAL = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
SECOND = "/multimodal"
"""What follows a type for the model of the second mapping, where the first has another one."""


def model_types() -> list[str]:
    """The types of both mappings."""
    second = [name for name in _MULTIMODAL if name not in _CAUSAL]
    both = [x for x in _MULTIMODAL if x in _CAUSAL and _CAUSAL[x] != _MULTIMODAL[x]]
    return [*_CAUSAL, *second, *(name + SECOND for name in both)]


# The model is the decoder alone, whose configuration is a part of that of its type.
_DECODERS = {
    "musicgen": transformers.MusicgenDecoderConfig,
    "musicgen_melody": transformers.MusicgenMelodyDecoderConfig,
}


def construct(name: str, implementation: str) -> PreTrainedModel:
    """A new model of a type as `from_config` makes it; its constructor's errors pass through."""
    kind, config = name.removesuffix(SECOND), tiny_config(name)
    causal = kind in _CAUSAL and kind == name
    auto: Any = transformers.AutoModelForMultimodalLM
    auto = transformers.AutoModelForCausalLM if causal else auto
    torch.manual_seed(SEED)
    if type(config) in auto._model_mapping:
        return auto.from_config(config, attn_implementation=implementation)
    cls = getattr(transformers, (_CAUSAL if causal else _MULTIMODAL)[kind])
    return cls._from_config(config, attn_implementation=implementation)


def tiny_config(name: str) -> PreTrainedConfig:
    """A small configuration of a model type; whatever its constructor raises passes through."""
    kind = name.removesuffix(SECOND)
    cls = _DECODERS.get(kind) or configuration_auto.CONFIG_MAPPING[kind]
    return _shrunk(cls, None, SPECIAL.get(kind, {}))


def _shrunk(
    cls: type[PreTrainedConfig], default: PreTrainedConfig | None, options: Mapping[str, object]
) -> PreTrainedConfig:
    given = {name: x for name, x in options.items() if "." not in name}
    default = cls() if default is None else default
    fields: Any = cls
    names = [field.name for field in dataclasses.fields(fields)]
    facts = vars(default)
    values: dict[str, Any] = {}
    layers = next((facts[n] for n in LAYERS if isinstance(facts.get(n), int)), 0)
    kinds = _kinds({n: facts.get(n) for n in names}, layers)
    count = max([2, *(len(set(map(str, x))) for x in kinds.values())])
    for name in names:
        value = facts.get(name)
        if isinstance(value, PreTrainedConfig):
            inner = {
                key.removeprefix(f"{name}."): x
                for key, x in options.items()
                if key.startswith(f"{name}.")
            }
            values[name] = _shrunk(type(value), value, inner)
        elif name in kinds:
            values[name] = _pattern(kinds[name], count)
        elif name in LAYERS and isinstance(value, int):
            values[name] = count
        else:
            small = _small(name, value)
            if small is not None:
                values[name] = small
    latent = "kv_lora_rank" in names
    values["rope_parameters"] = _rope(facts.get("rope_parameters"), 8 if latent else 16)
    if latent and "num_key_value_heads" in names:
        values["num_key_value_heads"] = values["num_attention_heads"]
    return cls(**{**{n: x for n, x in values.items() if x is not None}, **given})


def _kinds(lists: Mapping[str, Any], layers: int) -> dict[str, list[Any]]:
    """The fields that hold something for each layer."""
    return {
        n: list(x) for n, x in lists.items() if isinstance(x, list | tuple) and len(x) == layers > 2
    }


def _pattern(values: list[Any], count: int) -> list[Any]:
    """Each kind once, then the pattern again: all kinds occur in few layers."""
    distinct = [x for i, x in enumerate(values) if x not in values[:i]]
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in values) and (
        max(values) >= count
    ):
        return [96] * count if max(values) > 256 else [min(x, 4) for x in values[:count]]
    return [distinct[i % len(distinct)] for i in range(count)]


def _small(name: str, value: object) -> object:
    if value is None and name in {"head_dim", "num_key_value_heads"}:
        return SIZES[name]
    if value is None or name in {"id2label", "label2id"}:
        return None
    if name in VALUES:
        return VALUES[name]
    if name.endswith(("_token_id", "_token_index", "_id", "_index")) and isinstance(value, int):
        codes = {"image": 98, "video": 97, "audio": 96}
        code = next((x for key, x in codes.items() if name.startswith(key)), 95)
        return code if value >= VOCABULARY else None
    if name in SIZES and isinstance(value, int) and not isinstance(value, bool):
        return SIZES[name] if name != "head_dim" or value else None
    return None


def _rope(rope: Any, head_dim: int) -> Any:  # noqa: ANN401
    """The default rotary parameters; sections of multimodal ones add up to the smaller head."""
    if not isinstance(rope, dict):
        return None
    if any(isinstance(x, dict) for x in rope.values()):
        return {key: _rope(x, head_dim) or x for key, x in rope.items()}
    rope = dict(rope)
    if "mrope_section" in rope:
        pairs = int(head_dim * (rope.get("partial_rotary_factor") or 1)) // 2
        rope["mrope_section"] = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    return rope


def tiny_model(name: str) -> PreTrainedModel:
    """A model with eager attention, wide weights and no end of sequence, in fp32."""
    model = construct(name, "eager").eval().float()
    widen(model)
    return model


@torch.no_grad()
def widen(model: nn.Module) -> None:
    """Wide normals for matrices; gates of zeros are opened; what was left unwritten is filled."""
    generator = torch.Generator().manual_seed(SEED)
    for name, x in model.named_parameters():
        if x.dim() > 1 or name.endswith("sinks") or not bool(x.isfinite().all()):
            x.copy_(torch.randn(x.shape, generator=generator) * STD)
        elif x.numel() == 1 and not bool(x.any()):
            x.fill_(1)
