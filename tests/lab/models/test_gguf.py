"""GGUF files load into the transformers model that they were made of."""

import gguf
import numpy as np
import pytest
import torch

from sample_attention.lab.models import load_model
from sample_attention.lab.models.gguf import (
    decode_tensor,
    deinterleave_heads,
    load_gguf_model,
    parameter_name,
)
from sample_attention.lab.models.gguf_header import GGUFHeader, UnsupportedGGUF, read_gguf_header

PROMPT = torch.arange(3, 43).reshape(2, 20)
QUANTISED = {"Q8_0": 32, "Q5_0": 32, "Q4_1": 32, "Q4_K": 256, "Q6_K": 256}


def test_logits_equal_those_of_the_source_model(tiny):
    loaded = load_gguf_model(read_gguf_header(tiny.path))
    with torch.inference_mode():
        assert torch.equal(loaded(PROMPT).logits, tiny.model(PROMPT).logits)


def test_configuration_is_that_of_the_source_model(tiny):
    config = load_gguf_model(read_gguf_header(tiny.path)).config
    assert type(config) is type(tiny.model.config)
    assert config.rope_parameters == tiny.model.config.rope_parameters
    assert config.max_position_embeddings == 512
    assert config.tie_word_embeddings == tiny.model.config.tie_word_embeddings


def test_output_layer_is_tied_only_when_the_file_has_none(tiny):
    loaded = load_gguf_model(read_gguf_header(tiny.path))
    shared = loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert shared == tiny.model.config.tie_word_embeddings


def test_load_model_takes_a_gguf_path_and_a_dtype(tiny):
    loaded = load_model(tiny.path, dtype=torch.bfloat16)
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.context_length == 512
    assert loaded.name == str(tiny.path)
    assert loaded.model.generation_config.eos_token_id == [2]


def test_metadata_equals_that_of_the_library_reader(tiny):
    header = read_gguf_header(tiny.path)
    reader = gguf.GGUFReader(tiny.path)
    theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert header.metadata == theirs
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
    assert [t.offset for t in header.tensors.values()] == [t.data_offset for t in reader.tensors]


@pytest.mark.parametrize("kind", QUANTISED)
def test_blocks_decode_as_the_library_does(tmp_path, kind):
    type_id = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[type_id]
    assert block == QUANTISED[kind]
    raw = np.random.default_rng(0).integers(0, 256, (6, 2 * size), dtype=np.uint8)
    raw.reshape(-1, size)[:, [1, 3, -1]] &= 0x3F  # keep the half-precision scales finite
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("x.weight", raw, raw_dtype=type_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(path)
    decoded = decode_tensor(header, header.tensors["x.weight"])
    assert decoded.shape == (6, 2 * block)
    assert np.array_equal(decoded.numpy(), gguf.dequantize(raw, type_id), equal_nan=True)


def test_deinterleaving_follows_its_formula():
    rows = torch.arange(2 * 8 * 3).reshape(2 * 8, 3)
    out = deinterleave_heads(rows, num_heads=2)
    for head, i, j in [(0, 0, 0), (0, 0, 1), (0, 3, 1), (1, 2, 0)]:
        assert torch.equal(out[head * 8 + j * 4 + i], rows[head * 8 + 2 * i + j])
    assert torch.equal(deinterleave_heads(rows[:, 0], num_heads=2), out[:, 0])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
        ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
    ],
)
def test_parameter_names(tmp_path, theirs, ours):
    assert parameter_name(GGUFHeader(tmp_path, {}, {}), theirs) == ours


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_gate_exps.weight", "blk.0.x"])
def test_unknown_tensors_are_refused(tmp_path, name):
    with pytest.raises(UnsupportedGGUF, match=name):
        parameter_name(GGUFHeader(tmp_path, {}, {}), name)


def test_scaled_rope_is_refused(write_llama):
    path = write_llama(lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN))
    with pytest.raises(UnsupportedGGUF, match="yarn"):
        load_model(path)


def test_partial_rope_is_refused(write_llama):
    path = write_llama(lambda writer: writer.add_rope_dimension_count(8))
    with pytest.raises(UnsupportedGGUF, match=r"8 under .*rope\.dimension_count.* 16 only"):
        load_model(path)


def test_surplus_parameters_are_refused(write_llama):
    extra = np.zeros(64, np.float32)
    path = write_llama(lambda writer: writer.add_tensor("blk.7.attn_norm.weight", extra))
    with pytest.raises(UnsupportedGGUF, match=r"model\.layers\.7"):
        load_model(path)


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "mamba.gguf"
    writer = gguf.GGUFWriter(str(path), "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedGGUF, match="mamba"):
        load_gguf_model(read_gguf_header(path))


def test_damaged_files_are_refused(tiny, tmp_path):
    other = tmp_path / "text.gguf"
    other.write_bytes(b"not a model")
    with pytest.raises(UnsupportedGGUF, match="does not begin with"):
        load_model(other)
    whole = tiny.path.read_bytes()
    for length in (40, 5000, len(whole) - 5000):
        other.write_bytes(whole[:length])
        with pytest.raises(UnsupportedGGUF):
            load_model(other)


@pytest.mark.model
@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2_path):
    loaded = load_model(smollm2_path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = loaded.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt"
    )
    out = loaded.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(out[0])
