"""A tokenizer trained on the real prose, and a tiny random model that reads its tokens."""

import pytest

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

import torch  # noqa: E402

from sample_attention.lab.models import LoadedModel, reference_text  # noqa: E402

VOCABULARY = 1500
CONTEXT = 2048


@pytest.fixture(scope="session")
def tokenizer():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator([reference_text()[:100_000]], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.fixture(scope="session")
def loaded(tokenizer):
    """Weights large enough for attention to be uneven, so that plans are sparse."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=CONTEXT,
            bos_token_id=None, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.normal_(std=0.4)
            layer.self_attn.k_proj.weight.normal_(std=0.4)
    return LoadedModel(model, tokenizer, CONTEXT, "tiny")
