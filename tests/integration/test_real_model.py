"""SmolLM2-135M-Instruct on real text: the sparse prefill changes no greedy token."""

import pytest
import torch

from sample_attention import SampleAttentionConfig
from sample_attention.integrations.transformers import sample_attention_prefill
from sample_attention.lab.models import WeightsError, fetch_weights, load_model, needle_prompt
from sample_attention.routing.policy import CROSSOVERS

TOKENS = CROSSOVERS["cpu"].min_kv_len + 200


@pytest.fixture(scope="module")
def smollm2():
    try:
        return load_model(fetch_weights("smollm2-135m"))
    except WeightsError as error:
        pytest.skip(f"no SmolLM2 weights: {error}")


@pytest.mark.model
@pytest.mark.slow
def test_same_answer_dense_and_sparse(smollm2, generated):
    prompt = needle_prompt(smollm2.tokenizer, TOKENS, depth=0.5)
    ids, texts = torch.tensor([prompt.token_ids]), []
    config = SampleAttentionConfig(coverage=0.9)
    for settings in (SampleAttentionConfig(coverage=1.0), config):
        with sample_attention_prefill(smollm2.model, settings, record=True) as recorder:
            texts.append(generated(smollm2.model, ids, max_new_tokens=16))
    assert texts[0] == texts[1]
    assert prompt.answer in smollm2.tokenizer.decode(texts[0][0])
    assert len(recorder.layers) == smollm2.model.config.num_hidden_layers
    assert all(call.route.sparse for call in recorder.layers)
    assert torch.stack([call.density for call in recorder.layers]).mean() < 1
