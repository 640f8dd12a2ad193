"""`load_model` finds a model by key, file, folder or hub id, and says so when it does not."""

import sys
import types

import pytest
import torch
import transformers

from sample_attention.errors import MissingExtra, ModelNotFound
from sample_attention.lab.models import load, load_model


@pytest.mark.parametrize("name", ["no-such-file.gguf", "/no/such/folder", "not a hub id!"])
def test_unknown_names_raise_and_list_what_is_accepted(name):
    with pytest.raises(ModelNotFound, match="smollm2-135m") as caught:
        load_model(name)
    assert name in str(caught.value)


def test_a_folder_without_a_model_raises(tmp_path):
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        load_model(tmp_path)


def test_a_hub_id_that_cannot_be_loaded_raises(monkeypatch):
    def refuse(*_, **__):
        raise OSError("nobody/nothing is not a model\nlong explanation")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ModelNotFound, match="is not a model"):
        load_model("nobody/nothing")


def test_a_pinned_key_is_fetched(tiny, monkeypatch):
    monkeypatch.setattr(load, "fetch_weights", lambda key: {"smollm2-135m": tiny.path}[key])
    loaded = load_model("smollm2-135m")
    assert loaded.name == "smollm2-135m"
    assert loaded.model.dtype == torch.float32


def test_a_transformers_folder_loads(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    load_model(tiny.path).tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, tiny.model(ids).logits)
    assert loaded.context_length == 512
    assert loaded.tokenizer("some words")["input_ids"]


@pytest.mark.parametrize(
    ("stated", "rope", "expected"),
    [
        (256, {"rope_type": "default"}, 256),
        (256, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        (256, {"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 256}, 384),
        (1024, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        (4096, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 4096),
        (256, {"rope_type": "linear", "factor": 4.0}, 256),
    ],
)
def test_a_stretched_context_counts(tiny, tmp_path, stated, rope, expected):
    config = transformers.LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=stated,
        rope_parameters={"rope_theta": 10000.0, **rope},
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    load_model(tiny.path).tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path).context_length == expected


def test_layers_of_several_kinds_state_the_longest():
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}
    config = types.SimpleNamespace(
        max_position_embeddings=512, rope_parameters={"full": rope, "sliding": {"factor": 1.0}}
    )
    assert load.trained_length(config) == 1024
    assert load.trained_length(types.SimpleNamespace()) == 0


@pytest.mark.parametrize("module", ["transformers", "gguf", "numpy"])
def test_a_missing_extra_is_named(tiny, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=module):
        load_model(tiny.path)
