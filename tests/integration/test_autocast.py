"""A model under autocast: rotated queries are fp32 there and values bf16."""

import pytest
import torch

from sample_attention.integrations.support import NAME
from sample_attention.integrations.transformers import register


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2", "deepseek_v3"])
def test_logits(family, dtype, sparse, tiny, prompt, budget, nearly_all, request):
    if sparse:
        request.getfixturevalue("low_crossover")
    model, ids = tiny(family), prompt(2)
    exact, _ = budget(family, ids)
    seen = {}
    register(nearly_all)
    for implementation in ("eager", NAME):
        model.set_attn_implementation(implementation)
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
            seen[implementation] = model(ids).logits
    register()
    assert seen[NAME].dtype == seen["eager"].dtype
    limit = 4 * (seen["eager"].double() - exact).abs().max()
    assert (seen[NAME].double() - exact).abs().max() <= limit
