"""What cannot be computed right is refused, with the layer, the argument and what to do."""

import pytest
import torch
import transformers

from sample_attention.errors import InvalidConfig, MissingExtra, UnsupportedAttention
from sample_attention.integrations.support import NAME
from sample_attention.integrations.transformers import register, sample_attention_prefill

SMALL = {
    "vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _registered():
    register()


def refused(match):
    return pytest.raises(UnsupportedAttention, match=match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"attention_mask": torch.ones(1, 1, 97, 97)},
            r"layer 0\): attention_mask.*\(1, 1, 97, 97\)",
        ),
        ({"output_attentions": True}, r"output_attentions.*eager"),
        ({"position_bias": torch.ones(1)}, r"position_bias may change what attention is"),
        ({"position_ids": torch.arange(97)[None] ** 2}, r"position_ids.*jump to a position other"),
        (
            {"cu_seq_lens_q": torch.tensor([0, 97]), "cu_seq_lens_k": torch.tensor([0, 50, 97])},
            r"cu_seq_lens_q and cu_seq_lens_k do not fit: there are 2 totals",
        ),
        (
            {"cu_seq_lens_q": torch.tensor([0, 97]), "cu_seq_lens_k": torch.tensor([0, 50])},
            r"do not fit: 97 queries on 50 keys",
        ),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_arguments(options, match, tiny, prompt):
    model = tiny("llama")
    model.set_attn_implementation(NAME)
    with refused(r"LlamaAttention \(model type llama, " + ".*" + match), torch.no_grad():
        model(prompt(), **options)


def test_training(tiny, prompt):
    model = tiny("llama")
    model.set_attn_implementation(NAME)
    with refused(r"layer 0\): query, key or value needs gradients.*torch.no_grad"):
        model(prompt())
    attention = model.model.layers[0].self_attn
    attention.attention_dropout, rate = 0.1, attention.attention_dropout
    model.train()
    try:
        with refused(r"dropout is 0.1; accepted: 0; call model.eval"), torch.no_grad():
            model(prompt())
    finally:
        model.eval()
        attention.attention_dropout = rate


def test_packed_after_a_cached_prefix(tiny, prompt):
    model = tiny("llama")
    model.set_attn_implementation(NAME)
    with torch.no_grad():
        cache = model(prompt(), use_cache=True).past_key_values
        with refused(r"position_ids start again after a cached prefix"):
            model(prompt(), past_key_values=cache, position_ids=torch.arange(97)[None] % 50)


def test_packed_beside_padding(tiny, prompt):
    model, totals = tiny("llama"), torch.tensor([0, 97])
    model.set_attn_implementation(NAME)
    mask = torch.ones(1, 97)
    mask[0, 0] = 0
    with refused(r"cu_seq_lens_q comes with a padding mask"), torch.no_grad():
        model(prompt(), attention_mask=mask, cu_seq_lens_q=totals, cu_seq_lens_k=totals)


def test_gaps_in_a_mask_of_a_sliding_layer(tiny, prompt):
    model = tiny("mistral")
    model.set_attn_implementation(NAME)
    mask = torch.ones(1, 97)
    mask[0, 10] = 0
    with refused(r"MistralAttention.*attention_mask has gaps.*one side"), torch.no_grad():
        model(prompt(), attention_mask=mask)


def test_bidirectional_models(prompt, tiny):
    model = tiny("llama")
    attention = model.model.layers[1].self_attn
    model.set_attn_implementation(NAME)
    attention.is_causal = False
    with refused(r"LlamaAttention.*layer 1\): is_causal is False.*text_config"), torch.no_grad():
        model(prompt())
    attention.is_causal = True
    with refused(r"layer 0\): is_causal is False.*text decoder"), torch.no_grad():
        model(prompt(), is_causal=False)
    encoder = transformers.BertModel(transformers.BertConfig(**SMALL)).eval()
    encoder.set_attn_implementation(NAME)
    with refused(r"BertSelfAttention.*is_causal is False"), torch.no_grad():
        encoder(prompt() % 99)
    config = transformers.LlamaConfig(**SMALL, is_causal=False)
    model = transformers.LlamaForCausalLM(config).eval()
    model.set_attn_implementation(NAME)
    with refused(r"layer 0\): is_causal is False"), torch.no_grad():
        model(prompt() % 99)


def test_paged_outside_continuous_batching(tiny, prompt):
    model = tiny("llama")
    model.set_attn_implementation("paged|eager")
    with (
        sample_attention_prefill(model),
        refused(r"(cache|read_index) is not what continuous batching passes"),
        torch.no_grad(),
    ):
        model(prompt())


def test_a_block_on_a_model_with_attention_of_its_own():
    model = transformers.BloomForCausalLM(transformers.BloomConfig(n_layer=1, hidden_size=64))
    before = model.config._attn_implementation
    with refused("BloomForCausalLM cannot be chosen"), sample_attention_prefill(model):
        pass
    assert model.config._attn_implementation == before


def test_a_missing_transformers_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("sample_attention._extras.importlib.import_module", missing)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[transformers\]'"):
        register()


def test_a_multimodal_model_switches_its_text_part_only(prompt):
    text = transformers.Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=24)
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=98,
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    ids = prompt() % 97
    with torch.no_grad():
        expected = model(ids).logits.argmax(-1)
        with sample_attention_prefill(model, record=True) as recorder:
            names = model.config, model.config.text_config, model.config.vision_config
            assert [c._attn_implementation for c in names] == ["eager", NAME, "eager"]
            assert torch.equal(model(ids).logits.argmax(-1), expected)
    assert len(recorder.layers) == 2
    assert [c._attn_implementation for c in names] == ["eager"] * 3


@pytest.mark.parametrize("layers", [12, 31])
def test_a_configuration_tuned_for_another_number_of_layers(layers):
    """With as many heads as the file has, so that only the count of layers tells."""
    sizes = {
        "hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3,
        "num_hidden_layers": layers,
    }  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, **sizes})).eval()
    ids = torch.arange(300)[None] % 90 + 3
    refused = pytest.raises(InvalidConfig, match=rf"(?i)smollm2.*30 layers.*{layers}")
    with refused, torch.no_grad(), sample_attention_prefill(model, "tuned:smollm2-135m"):
        model(ids)
