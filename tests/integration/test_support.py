"""Models that do not call the attention chosen for them are refused where they ask for a mask."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from sample_attention.errors import UnsupportedAttention
from sample_attention.integrations.support import NAME, SERVED_ANYWAY, refuse_model
from sample_attention.integrations.transformers import register

GPT = {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4}
PLAIN = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {
    "vocab_size": 99, "d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96, "is_decoder": True, "is_encoder_decoder": False,
}  # fmt: skip
SPARSE_BY_THEMSELVES = {
    **PLAIN, "intermediate_size": 96, "moe_intermediate_size": 32, "num_key_value_heads": 4,
    "q_lora_rank": 32, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 64,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0,
}  # fmt: skip
CODEGEN = {**GPT, "rotary_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
SERVES_CODEGEN = Version(transformers.__version__) >= Version("5.24")
"""From this release of transformers on, CodeGen calls the attention that was chosen."""

OWN_CODE = {
    "Bloom": {"vocab_size": 99, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    **({} if SERVES_CODEGEN else {"CodeGen": CODEGEN}),
    "GPTNeoXJapanese": {**PLAIN, "intermediate_multiple_size": 2},
    "XGLM": {"vocab_size": 99, "d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96},
    "Mvp": DECODER,
    "TrOCR": DECODER,
}
PAIRS_OF_TOKENS = {
    "DeepseekV4": {
        **SPARSE_BY_THEMSELVES, "num_key_value_heads": 1, "head_dim": 16, "o_lora_rank": 32,
        "o_groups": 2, "num_hash_layers": 0,
        "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
    },
    "DeepseekV32": {
        **SPARSE_BY_THEMSELVES, "n_group": 1, "topk_group": 1, "kv_lora_rank": 32,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("length", [50, 200])
@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        pytest.param(name, options, match, id=name)
        for names, match in (
            (OWN_CODE, "computes attention in its own code"),
            (PAIRS_OF_TOKENS, "works on a mask of pairs of tokens"),
        )
        for name, options in names.items()
    ],
)
def test_refused_when_constructed_with_the_name(name, options, match, length):
    register()
    config = getattr(transformers, f"{name}Config")(**options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=NAME).eval()
    ids = torch.arange(length)[None] % 90 + 3
    refused = pytest.raises(UnsupportedAttention, match=f"{name}PreTrainedModel.*{match}")
    with refused, torch.no_grad():
        model(ids)


@pytest.mark.skipif(not SERVES_CODEGEN, reason="this release of transformers refuses the choice")
@pytest.mark.parametrize("length", [50, 200])
def test_codegen_equals_eager(length):
    register()
    model = transformers.CodeGenForCausalLM(transformers.CodeGenConfig(**CODEGEN)).eval()
    ids = torch.arange(length)[None] % 90 + 3
    with torch.no_grad():
        model.set_attn_implementation("eager")
        exact, rounded = model.double()(ids).logits, model.float()(ids).logits
        model.set_attn_implementation(NAME)
        seen = model(ids).logits
    assert (seen - exact).abs().max() <= 4 * (rounded - exact).abs().max()


def _text_classes():
    """Every configuration that a causal language model of transformers takes, with its model."""
    for config, models in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        for model in models if isinstance(models, tuple) else (models,):
            if model.config_class is config:
                yield pytest.param(config, model, id=model.__name__)


@pytest.mark.parametrize(("config", "model"), list(_text_classes()))
def test_every_causal_model_is_refused_or_serves_fused_attention(config, model):
    """By its base: what a model with images declines for them is refused in its masks."""
    base = next(x for x in reversed(model.__mro__) if getattr(x, "config_class", None) is config)
    served = base._can_set_attn_implementation() and (
        base._supports_flash_attn or config.model_type in SERVED_ANYWAY
    )
    asked = config.__new__(config)  # some cannot be made without arguments
    if served:
        refuse_model(asked)
        return
    with pytest.raises(UnsupportedAttention, match=f"model type {config.model_type}"):
        refuse_model(asked)


def test_a_derived_model_is_judged_by_its_base():
    """Classes made in a session have no source to read; what they derive from has."""
    unreadable = {"_can_set_attn_implementation_cached_value": False}
    kind = type("Mine", (transformers.LlamaForCausalLM,), unreadable)
    assert not kind._can_set_attn_implementation()
    refuse_model(transformers.LlamaConfig())


def test_a_caller_without_a_configuration_is_served():
    refuse_model(None)
