"""What a model says in its masks alone: read right, or refused, but never lost."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, masking_utils

from sample_attention import sample_attention
from sample_attention.errors import UnsupportedAttention
from sample_attention.integrations.layout import recall_layout
from sample_attention.integrations.masks import MaskParts, read_mask_function
from sample_attention.integrations.support import NAME
from sample_attention.integrations.transformers import register
from sample_attention.testing import make_qkv

SMALL = {
    "vocab_size": 199, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LENGTH = 97
NO_MASK_WITHOUT_PADDING = Version("5.18")
"""From this release of transformers on, `generate` drops a mask that is all ones."""


@pytest.fixture(autouse=True)
def _registered():
    register()


def refused(match):
    return pytest.raises(UnsupportedAttention, match=match)


def wide(model):
    """The model with weights so wide that attention is peaked."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
        elif "gate" in name:
            torch.nn.init.ones_(parameter)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def both(model, run):
    """What `run` gives with eager attention and with ours, and how far fp32 moves eager."""
    results = []
    for implementation in ("eager", NAME):
        model.set_attn_implementation(implementation)
        results.append(run(model))
    model.set_attn_implementation("eager")
    exact = run(model.double())
    model.float()
    return results[1], exact, 8 * (results[0] - exact).abs().max()


@torch.no_grad()
def logits(model, ids, **options):
    return model(ids, **options).logits.double()


def llama4(chunk):
    config = transformers.Llama4TextConfig(
        **SMALL, num_local_experts=2, head_dim=16, intermediate_size_mlp=96,
        attention_chunk_size=chunk,
    )  # fmt: skip
    return wide(transformers.Llama4ForCausalLM(config))


@pytest.mark.parametrize("padding", [0, 7, 40])
@pytest.mark.parametrize("chunk", [16, 32, 96, 97, 128])
def test_chunks_of_llama_4(chunk, padding, prompt):
    """Chunks begin at the first token of a sequence, in one call and in several."""
    model, ids = llama4(chunk), prompt(2)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0

    def whole(model):
        return logits(model, ids, attention_mask=mask)[mask.bool()]

    def in_pieces(model):
        cache, parts = DynamicCache(config=model.config), []
        for lo, hi in ((0, 30), (30, 63), (63, LENGTH)):
            options = {"attention_mask": mask[:, :hi], "past_key_values": cache}
            parts.append(logits(model, ids[:, lo:hi], **options))
        return torch.cat(parts, 1)[mask.bool()]

    for run in (whole, in_pieces):
        seen, exact, limit = both(model, run)
        assert (seen - exact).abs().max() <= limit


def test_chunks_are_cut_within_gaps(prompt):
    model, mask = llama4(32), torch.ones(1, LENGTH)
    mask[0, 50] = 0
    model.set_attn_implementation(NAME)
    with refused("chunks of attention"):
        logits(model, prompt(), attention_mask=mask)


@pytest.mark.parametrize("cached", [30, 96])
def test_a_mask_that_ends_before_the_tokens(cached, tiny, prompt):
    model, ids = tiny("llama"), prompt()
    model.set_attn_implementation(NAME)
    cache = DynamicCache(config=model.config)
    logits(model, ids[:, :cached], past_key_values=cache)
    with refused(rf"has {LENGTH - cached} columns.*positions {cached} to 96.*already in the cache"):
        logits(
            model, ids[:, cached:], past_key_values=cache,
            attention_mask=torch.ones(1, LENGTH - cached),
        )  # fmt: skip


def test_generate_on_a_cache_that_holds_the_prompt(tiny, prompt, generated):
    """Its mask ends too early; newer releases pass none where no token is padding, to any."""
    model, ids = tiny("llama"), prompt()
    expected = generated(model, ids)

    def after(held):
        cache = DynamicCache(config=model.config)
        logits(model, ids[:, :held], past_key_values=cache)
        return generated(model, ids, past_key_values=cache)

    eager = after(LENGTH)
    model.set_attn_implementation(NAME)
    if Version(transformers.__version__) >= NO_MASK_WITHOUT_PADDING:
        assert after(LENGTH) == eager
    else:
        with refused("was the prompt already in the cache"):
            after(LENGTH)
    assert after(LENGTH - 1) == expected


def test_a_window_that_only_the_mask_of_generate_knows(prompt, generated):
    """Moshi makes a mask with its window, and then hands it to a mask function without one."""
    config = transformers.MoshiConfig(
        vocab_size=199, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=16, ffn_dim=96, sliding_window=16,
        max_position_embeddings=128,
    )  # fmt: skip
    model, ids = wide(transformers.MoshiForCausalLM(config)), prompt()
    static = {"cache_implementation": "static", "disable_compile": True}
    seen = {}
    for implementation in ("eager", "sdpa", NAME):
        model.set_attn_implementation(implementation)
        seen[implementation] = generated(model, ids, attention_mask=torch.ones_like(ids), **static)
    assert seen[NAME] == seen["eager"] == seen["sdpa"]


@pytest.mark.parametrize("images", [False, True])
def test_blocks_of_images(images, prompt):
    """Token types without an image are plain causal; image tokens see each other both ways."""
    text = transformers.Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=24)
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4,
        image_token_index=198,
    )  # fmt: skip
    model, ids = wide(transformers.Gemma3ForConditionalGeneration(config)), prompt() % 197
    types = torch.zeros_like(ids)
    if images:
        types[0, 20:24] = 1
        model.set_attn_implementation({"text_config": NAME})
        with refused("attention_mask stands for the mask 'or_masks'"):
            logits(model, ids, token_type_ids=types)
    else:
        seen, exact, limit = both(model, lambda m: logits(m, ids, token_type_ids=types))
        assert (seen - exact).abs().max() <= limit


def test_a_decoder_without_its_encoder(prompt):
    """Its mask for cross attention is made, and nobody uses it."""
    config = transformers.BartConfig(
        vocab_size=199, d_model=64, decoder_layers=2, decoder_attention_heads=4,
        decoder_ffn_dim=96, is_decoder=True, is_encoder_decoder=False,
    )  # fmt: skip
    model, ids = wide(transformers.BartForCausalLM(config)), prompt()
    seen, exact, limit = both(model, lambda m: logits(m, ids))
    assert (seen - exact).abs().max() <= limit
    model.set_attn_implementation(NAME)
    with refused("is_causal is False|bidirectional"):
        logits(model, ids, encoder_hidden_states=torch.randn(1, 30, 64),
               encoder_attention_mask=torch.ones(1, 30))  # fmt: skip


@pytest.mark.parametrize("keys", [50, LENGTH, 120])
def test_cross_attention_without_a_mask(keys, prompt):
    config = transformers.models.mllama.configuration_mllama.MllamaTextConfig(
        **SMALL, cross_attention_layers=[1]
    )
    model = wide(transformers.MllamaForCausalLM(config))
    model.set_attn_implementation(NAME)
    logits(model, prompt())  # text alone has none
    with refused(r"MllamaTextCrossAttention.*layer 1\): attention_mask is None"):
        logits(model, prompt(), cross_attention_states=torch.randn(1, keys, 64))


@pytest.mark.parametrize("extra", [-1, 1, 9])
def test_keys_that_are_not_those_of_the_mask(extra, tiny, prompt, monkeypatch):
    """As in layers that add compressed keys, or drop some, after the mask was made."""
    model = tiny("llama")
    model.set_attn_implementation(NAME)
    interface = transformers.AttentionInterface()
    ours = interface[NAME]

    def other_keys(module, q, k, v, mask, **options):
        k, v = (torch.nn.functional.pad(x, (0, 0, 0, extra)) for x in (k, v))
        return ours(module, q, k, v, mask, **options)

    monkeypatch.setitem(interface._global_mapping, NAME, other_keys)
    with refused(rf"was made for {LENGTH} keys and the layer has {LENGTH + extra}"):
        logits(model, prompt())


def test_a_layer_without_an_index(prompt):
    """The attention that Zamba's layers share has `layer_idx` None."""
    config = transformers.ZambaConfig(
        **{**SMALL, "intermediate_size": 96}, layers_block_type=["hybrid", "linear_attention"] * 2,
        attention_hidden_size=128, attention_head_dim=32, mamba_dt_rank=8, use_mamba_kernels=False,
    )  # fmt: skip
    model, ids = wide(transformers.ZambaForCausalLM(config)), prompt()
    seen, exact, limit = both(model, lambda m: logits(m, ids))
    assert (seen - exact).abs().max() <= limit


COPIED = ["qwen2", "mistral", "phi3", "gemma2", "phimoe", "qwen2_moe", "gpt_oss"]


@pytest.mark.parametrize("family", COPIED)
def test_copies_of_a_mask_keep_the_window(family, tiny, prompt, budget, monkeypatch):
    """As on the second device of a spread model; refused where the mask alone knew the window."""
    model, ids = tiny(family), prompt(2)
    model.set_attn_implementation(NAME)
    interface = transformers.AttentionInterface()
    ours = interface[NAME]

    def copied(module, q, k, v, mask, **options):
        assert recall_layout(mask) is not None
        return ours(module, q, k, v, mask.clone(), **options)

    monkeypatch.setitem(interface._global_mapping, NAME, copied)
    if family in ("phimoe", "qwen2_moe"):
        with refused("is a copy of the mask"):
            logits(model, ids)
    else:
        exact, limit = budget(family, ids)
        assert (logits(model, ids) - exact).abs().max() <= limit


def test_copies_of_a_mask_keep_packed_sequences(tiny, prompt, budget, monkeypatch):
    model, ids = tiny("llama"), prompt()
    model.set_attn_implementation(NAME)
    interface = transformers.AttentionInterface()
    ours = interface[NAME]

    def copied(module, q, k, v, mask, **options):
        del options["position_ids"]  # not every model passes them on
        return ours(module, q, k, v, mask.clone(), **options)

    monkeypatch.setitem(interface._global_mapping, NAME, copied)
    positions = torch.cat([torch.arange(40), torch.arange(57)])[None]
    seen = logits(model, ids, position_ids=positions, use_cache=False)
    for part in (slice(0, 40), slice(40, LENGTH)):
        exact, limit = budget("llama", ids[:, part])
        assert (seen[:, part] - exact).abs().max() <= limit


@pytest.mark.parametrize("family", ["phimoe", "qwen2_moe", "llama4"])
def test_copies_of_packed_sequences_do_not_lose_a_window(family, tiny, prompt, monkeypatch):
    """What the mask alone knew beside the sequences is refused, not forgotten."""
    model, ids = llama4(16) if family == "llama4" else tiny(family), prompt()
    model.set_attn_implementation(NAME)
    copy_masks(monkeypatch)
    positions = torch.cat([torch.arange(40), torch.arange(57)])[None]
    with refused("is a copy of the mask"):
        logits(model, ids, position_ids=positions, use_cache=False)


def test_copies_of_a_refused_mask_are_refused(tiny, prompt, monkeypatch):
    model, ids = tiny("llama"), prompt()
    model.set_attn_implementation(NAME)
    copy_masks(monkeypatch)
    monkeypatch.setattr(
        "sample_attention.integrations.transformers.read_mask_function",
        lambda function: MaskParts(causal=True, unknown=function.__qualname__),
    )
    with refused("is a copy of a mask of pairs"):
        logits(model, ids)


def copy_masks(monkeypatch):
    interface = transformers.AttentionInterface()
    ours = interface[NAME]

    def copied(module, q, k, v, mask, **options):
        return ours(module, q, k, v, mask.clone(), **options)

    monkeypatch.setitem(interface._global_mapping, NAME, copied)


def remap_positions_for_packed_sequence(mask_function, position_ids):
    """As in transformers 5.24, which puts it between a mask and its packed sequences."""

    def inner_mask(b, h, q, k):
        return mask_function(b, h, position_ids[b, q], position_ids[b, k])

    return inner_mask


MASKS = {
    "causal": masking_utils.causal_mask_function,
    "sliding": masking_utils.sliding_window_causal_mask_function(8),
    "chunked": masking_utils.chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.int32)),
    "bidirectional": masking_utils.bidirectional_mask_function,
}


@pytest.mark.parametrize("kind", MASKS)
def test_positions_within_packed_sequences_change_no_mask(kind):
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    packed = masking_utils.packed_sequence_mask_function(torch.tensor([[0, 0, 0, 1, 1]]))
    remapped = remap_positions_for_packed_sequence(MASKS[kind], positions)
    plain, moved = (
        read_mask_function(masking_utils.and_masks(mask, packed))
        for mask in (MASKS[kind], remapped)
    )
    assert moved == plain
    assert moved.packed is not None


def test_a_layer_of_no_configuration():
    """As attention modules of other code: only tables for layers need to know the model."""
    layer = torch.nn.Module()
    layer.layer_idx, layer.is_causal = 3, True
    q, k, v = make_qkv(40, num_heads=2, num_kv_heads=1)
    attention = transformers.AttentionInterface()[NAME]
    with torch.no_grad():
        out, _ = attention(layer, q, k, v, None)
        assert torch.equal(out, sample_attention(q, k, v).transpose(1, 2))
