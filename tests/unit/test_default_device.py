"""A default device of the caller's (`with torch.device(...)`) is not where helper tensors go."""

from dataclasses import replace

import pytest
import torch

from sample_attention import (
    SampleAttentionConfig,
    Sequences,
    attend,
    measured_attention,
    sample_attention,
    select,
)
from sample_attention.config import PRESETS
from sample_attention.testing import make_pages, make_qkv

LENGTH = 1500
DETAILS = {
    "sampled rows rank": SampleAttentionConfig.preset("pooled", pool=None),
    "pools cut by the call": SampleAttentionConfig.preset("pooled", pool=64, segment=256),
    "a window edge for each row": SampleAttentionConfig.preset("paper", window_ratio=0.02),
}
RULES = {name: replace(rule, held_out=4) for name, rule in (PRESETS | DETAILS).items()}


def whole():
    return *make_qkv(LENGTH - 30, LENGTH, num_heads=2, num_kv_heads=1), None


def padded():
    lengths = torch.tensor([LENGTH, LENGTH - 400])
    sequences = Sequences.left_padded(lengths, LENGTH, LENGTH)
    return *make_qkv(LENGTH, batch=2, num_heads=2, num_kv_heads=1), sequences


def packed():
    q, k, v = (x[0].transpose(0, 1) for x in make_qkv(LENGTH, num_heads=2, num_kv_heads=1))
    return q, k, v, Sequences.packed_from(torch.tensor([0, LENGTH - 200, LENGTH]))


def paged():
    q, k, v, sequences = packed()
    return q, *make_pages(k, v, sequences, 16)


def steps(rule, q, k, v, sequences):
    """Every public operation, as a flat list of what it gives."""
    plan = select(q, k, rule, sequences=sequences)
    yield from (plan.indices, plan.counts, plan.dense, plan.offsets, plan.window)
    yield from attend(q, k, v, plan)
    yield sample_attention(q, k, v, rule, sequences=sequences)
    for guard in (None, 0.5, 1.0):
        done = measured_attention(q, k, v, replace(rule, guard=guard), sequences=sequences)
        assert done.route.sparse
        yield from (done.out, done.lse)
        yield from (x for x in (done.retained_mass, done.guarded) if x is not None)


@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize("layout", [whole, padded, packed, paged])
@pytest.mark.parametrize("name", RULES)
def test_is_left_alone(name, layout):
    given = layout()
    expected = list(steps(RULES[name], *given))
    with torch.device("meta"):
        found = list(steps(RULES[name], *given))
    assert [x.device.type for x in found] == ["cpu"] * len(expected)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def test_of_a_call_that_the_policy_runs_sparse():
    q, k, v = make_qkv(6272, num_heads=2, num_kv_heads=1)
    expected = measured_attention(q, k, v)
    assert expected.route.sparse
    with torch.device("meta"):
        assert torch.equal(sample_attention(q, k, v), expected.out)
