"""A million tokens in one call: what it holds in memory, and the last rows against a plan of their
own."""

import pytest
import torch

from sample_attention import SampleAttentionConfig, attend, sample_attention, select
from sample_attention.lab.bench.attention import extra_bytes
from sample_attention.lab.inputs import Shape, planted_inputs
from sample_attention.testing import assert_matches_mask

pytestmark = pytest.mark.gpu

LENGTH = 2**20
LAST = 4096
"""Rows, whole segments, that are computed again by themselves."""

EXTRA = 0.25
"""Most memory beside inputs and output, as a share of them."""


def test_a_layer_of_a_million_tokens():
    inputs = planted_inputs(Shape(), LENGTH, 0.02, torch.bfloat16, torch.device("cuda"), 0)
    q, k, v = inputs.q, inputs.k, inputs.v
    config = SampleAttentionConfig()
    out = sample_attention(q, k, v, config)
    plan = select(q[:, :, -LAST:], k, config)
    assert float(plan.density().mean()) < 0.5
    again = attend(q[:, :, -LAST:], k, v, plan)
    assert torch.equal(out[:, :, -LAST:], again.out)
    heads, rows = torch.tensor([0, 31]).cuda(), torch.tensor([0, 2047, LAST - 1]).cuda()
    keys = torch.arange(LENGTH, device="cuda")
    mask = torch.stack([plan.allows(0, h, rows, keys) for h in heads.tolist()])
    at, kv_heads = (heads[:, None], rows[None]), heads // 4
    some = q[0, :, -LAST:][at], k[0][kv_heads], v[0][kv_heads]
    assert_matches_mask(again.out[0][at], again.lse[0][at], some, mask)
    del out, again
    held = sum(x.nbytes for x in (q, k, v, q))
    assert extra_bytes(lambda: sample_attention(q, k, v, config), q.device) <= EXTRA * held
