"""`generate_batch` with sparse prefill gives what each request gives alone."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from sample_attention.integrations.support import NAME
from sample_attention.integrations.transformers import sample_attention_prefill
from sample_attention.routing import policy

LENGTHS = (97, 20, 61, 5)
PLAIN = {"num_blocks": 64, "block_size": 16, "max_batch_tokens": 512}
OTHERS = ("gpt_oss", "qwen2_moe", "phimoe")  # the last two name their windows in masks alone
CHUNKED = PLAIN | {"max_batch_tokens": 48}  # prompts come in pieces beside decoding requests


@pytest.fixture(autouse=True)
def _few_queries_run_sparse(low_crossover):
    pass


@pytest.fixture
def requests(prompt):
    ids = prompt(len(LENGTHS))
    return [ids[i, :n].tolist() for i, n in enumerate(LENGTHS)]


def answers(model, requests, settings):
    outputs = model.generate_batch(
        requests,
        generation_config=GenerationConfig(
            max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=ContinuousBatchingConfig(**settings),
    )
    assert len(outputs) == len(requests)
    assert not [o.error for o in outputs.values() if o.error]
    return [o.generated_tokens for _, o in sorted(outputs.items(), key=lambda x: x[0])]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param(family, settings, id=f"{family}-{name}")
        for name, settings, families in (
            ("whole", PLAIN, ("llama", "gemma2", "glm4", *OTHERS)),
            ("chunked", CHUNKED, ("llama", "gemma2", "qwen3", "mistral", *OTHERS)),
        )
        for family in families
    ],
)
def test_tokens_equal_those_of_each_alone(family, settings, tiny, requests, generated, nearly_all):
    model = tiny(family)
    alone = [generated(model, torch.tensor([r]), max_new_tokens=8)[0] for r in requests]
    model.set_attn_implementation("paged|eager")
    if family != "gemma2":  # paged|eager does not cap scores
        assert answers(model, requests, settings) == alone
    with sample_attention_prefill(model, nearly_all):
        assert answers(model, requests, settings) == alone


def test_the_context_manager_serves_continuous_batching(tiny, requests, nearly_all, monkeypatch):
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(50, 2, "a test"))
    model = tiny("llama")
    model.set_attn_implementation("paged|eager")
    expected = answers(model, requests, PLAIN)
    with sample_attention_prefill(model, nearly_all, record=True) as recorder:
        assert model.config._attn_implementation in (f"flash|{NAME}", f"paged|{NAME}")
        assert answers(model, requests, PLAIN) == expected
    assert model.config._attn_implementation == "paged|eager"
    calls = {(c.route.sparse, c.kv_len) for c in recorder.layers if c.layer == 0}
    assert {(True, 97), (False, 20)} <= calls


def test_decoding_is_dense(tiny, requests, sparse):
    model = tiny("llama")
    model.set_attn_implementation("paged|eager")
    with sample_attention_prefill(model, sparse, record=True) as recorder, torch.no_grad():
        answers(model, requests, PLAIN)
    assert len(recorder.layers) == 2  # one prefill of all requests, for each layer
