"""`load_model` finds a model by key, file, folder or hub id, and says so when it does not."""

import sys

import pytest
import torch
import transformers

from sample_attention.errors import MissingExtra, ModelNotFound
from sample_attention.models import load, load_model


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


@pytest.mark.parametrize("module", ["transformers", "gguf"])
def test_a_missing_extra_is_named(tiny, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=module):
        load_model(tiny.path)
