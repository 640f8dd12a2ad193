"""Fixtures of the model tests: a tiny GGUF file of each architecture, and the real SmolLM2."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

import torch  # noqa: E402

from sample_attention.lab.models import WeightsError, fetch_weights, reference_text  # noqa: E402
from sample_attention.lab.models.gguf_tokenizer import PRE_TOKENIZERS  # noqa: E402

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyGGUF:
    """A GGUF file with the transformers model and the `tokenizers` tokenizer it was made of."""

    path: Path
    model: "transformers.PreTrainedModel"
    backend: "tokenizers.Tokenizer"


def interleave_heads(weight, num_heads):
    """Reorder q or k rows as the converter of llama.cpp does for its form of RoPE."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def make_model(architecture, vocab_size, *, tied):
    torch.manual_seed(0)
    shapes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config_class = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}
    model_class = {"llama": transformers.LlamaForCausalLM, "qwen2": transformers.Qwen2ForCausalLM}
    config = config_class[architecture](
        vocab_size=vocab_size,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=tied,
        **shapes,
        **heads,
    )
    model = model_class[architecture](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def make_backend(pre):
    """Train a small byte-level BPE that cuts text as the pre-tokenizer `pre` does."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    PRE_TOKENIZERS[pre](backend, tokenizers)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(reference_text()[:40_000].split("\n\n"), trainer)
    return backend


def write_gguf(path, model, backend, pre, *, edit=None):
    """Write what llama.cpp's converter would, in F32; `edit` may add to the writer."""
    config = model.config
    name = config.model_type
    writer = gguf.GGUFWriter(str(path), name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocab = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([3 if token in SPECIAL else 1 for token, _ in vocab])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    if edit is not None:
        edit(writer)
    for full_name, tensor in model.state_dict().items():
        if full_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        short = full_name
        for theirs, ours in NAMES.items():
            short = short.replace(theirs, ours)
        values = tensor.numpy()
        if name == "llama" and ".attn_q." in short:
            values = interleave_heads(values, config.num_attention_heads)
        if name == "llama" and ".attn_k." in short:
            values = interleave_heads(values, config.num_key_value_heads)
        writer.add_tensor(short, values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session", params=["llama-smollm-tied", "qwen2-qwen2-untied"])
def tiny(request, tmp_path_factory):
    architecture, pre, tying = request.param.split("-")
    backend = make_backend(pre)
    model = make_model(architecture, backend.get_vocab_size(), tied=tying == "tied")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, model, backend, pre)
    return TinyGGUF(path, model, backend)


@pytest.fixture(scope="session")
def llama_parts():
    """A tokenizer and a tied llama model, for tests that write an unusual file of them."""
    backend = make_backend("smollm")
    return make_model("llama", backend.get_vocab_size(), tied=True), backend


@pytest.fixture
def write_llama(tmp_path, llama_parts):
    """Return a function that writes a llama GGUF file, altered by `edit(writer)` or `pre`."""

    def write(edit=None, pre="smollm"):
        path = tmp_path / "edited.gguf"
        write_gguf(path, *llama_parts, pre, edit=edit)
        return path

    return write


@pytest.fixture(scope="session")
def smollm2_path():
    """The real SmolLM2-135M-Instruct, from the cache or downloaded."""
    try:
        return fetch_weights("smollm2-135m")
    except WeightsError as error:
        pytest.skip(f"no SmolLM2 weights: {error}")
