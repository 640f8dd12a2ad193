"""Tiny random models of each family, and the budget that rounding of their own numerics sets."""

import functools

import pytest
import torch

from sample_attention import preset
from sample_attention.routing import policy

transformers = pytest.importorskip("transformers")

WINDOW = 24
PROMPT = 97
VOCABULARY = 199
# Wide weights, so that attention is peaked and the best token leads by more than rounding.
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2,
    "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
SLIDING = {"sliding_window": WINDOW}
MIXED = {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
FAMILIES = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {**MIXED, "use_sliding_window": True}),
    "qwen3": ("Qwen3", {**MIXED, "use_sliding_window": True}),
    "mistral": ("Mistral", SLIDING),
    "glm4": ("Glm4", {}),
    "gemma2": ("Gemma2", {**MIXED, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3", {**MIXED, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3", SLIDING),
    "gpt_oss": ("GptOss", {**MIXED, **EXPERTS, "rope_parameters": ROPE}),
    # Keys of 16 dimensions and values of 8.
    "deepseek_v3": ("DeepseekV3", {**LATENT, **EXPERTS, "num_key_value_heads": 4}),
    # The window of these two is in the mask only.
    "qwen2_moe": ("Qwen2Moe", {**MIXED, **EXPERTS, "use_sliding_window": True}),
    "phimoe": ("Phimoe", {**SLIDING, **EXPERTS}),
}
SPARSE = preset(
    "pooled", coverage=0.9, segment=16, rows=4, sample_stride=4, window=8, dense_prefix=0,
    dense_tail=0, held_out_rows=2,
)  # fmt: skip
# Next to nothing is dropped, so the sparse path has to give what dense attention gives.
NEARLY_ALL = preset(
    "pooled", coverage=1 - 1e-7, segment=16, rows=4, sample_stride=4, window=8, dense_prefix=0,
    dense_tail=0, dense_above=1.0,
)  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def sparse():
    return SPARSE


@pytest.fixture
def nearly_all():
    return NEARLY_ALL


@functools.cache
def _model(family, dtype):
    name, options = FAMILIES[family]
    suffix = "TextConfig" if family == "gemma3" else "Config"
    config = getattr(transformers, name + suffix)(**{**SIZES, **options})
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):  # left empty by the constructor
            torch.nn.init.normal_(parameter)
    model.set_experts_implementation("eager")  # the default has no fp64
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(dtype)


def _with_eager(family, dtype):
    model = _model(family, dtype)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def tiny():
    """A function from a family to its model, with eager attention."""
    used = []

    def get(family):
        model = _with_eager(family, torch.float32)
        used.append(model)
        return model

    yield get
    for model in used:
        model.set_attn_implementation("eager")


@pytest.fixture
def prompt():
    """A function from a batch size, length and seed to random token ids."""

    def make(batch=1, length=PROMPT, seed=3):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, VOCABULARY, (batch, length), generator=generator)

    return make


@pytest.fixture
def low_crossover(monkeypatch):
    """Lets prompts of a few tokens run sparse."""
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(0, 2, "a test"))


@pytest.fixture
def logits():
    """A function to the logits of a forward pass, in fp64."""
    return _logits


@pytest.fixture
def generated():
    """A function that generates greedily and returns the new tokens as lists."""

    def run(model, ids, **options):
        options = {"max_new_tokens": 10, "do_sample": False, **options}
        return model.generate(ids, **options)[:, ids.shape[1] :].tolist()

    return run


@functools.cache
def _budget(family, rows):
    exact, rounded = (
        _logits(_with_eager(family, dtype), torch.tensor(rows))
        for dtype in (torch.float64, torch.float32)
    )
    return exact, 8 * (rounded - exact).abs().max()


@pytest.fixture
def budget():
    """A function to eager's fp64 logits of unpadded ids, and to how far others may be off.

    That is a few times what fp32 costs eager itself.
    """
    return lambda family, ids: _budget(family, tuple(map(tuple, ids.tolist())))


@torch.no_grad()
def _logits(model, *args, **kwargs):
    return model(*args, **kwargs).logits.double()
