"""Every baseline prefills a model, under the same context manager as SampleAttention."""

import pytest
import torch

from sample_attention.integrations.transformers import sample_attention_prefill
from sample_attention.methods import METHODS, StreamingLLM


@pytest.fixture(autouse=True)
def _few_queries_run_sparse(low_crossover):
    pass


@pytest.mark.parametrize("name", METHODS)
def test_a_model_prefills_by_a_baseline(name, tiny, prompt, logits):
    model = tiny("llama")
    method = METHODS[name].turned(0.1, 300)
    with sample_attention_prefill(model, method, record=True, keep_plans=[1]) as recorder:
        changed = logits(model, prompt(length=300))
    assert changed.isfinite().all()
    assert all(call.route.sparse for call in recorder.layers)
    assert recorder.layers[1].plan is not None
    assert recorder.layers[0].retained_mass_mean is None


@pytest.mark.parametrize("name", METHODS)
def test_all_keys_give_what_the_model_gives(name, tiny, prompt, budget):
    model, ids = tiny("llama"), prompt()
    exact, bound = budget("llama", ids)
    with sample_attention_prefill(model, METHODS[name].turned(1.0, 4096)), torch.no_grad():
        assert (model(ids).logits.double() - exact).abs().max() <= bound


def test_padded_batches_and_decoding(tiny, prompt, generated):
    model, ids = tiny("llama"), prompt(batch=2, length=80)
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    expected = generated(model, ids, attention_mask=mask)
    with sample_attention_prefill(model, StreamingLLM(window=4096)):
        assert generated(model, ids, attention_mask=mask) == expected
