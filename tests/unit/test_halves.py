"""Scores of bf16 and fp16 inputs are exact until the softmax, whoever computes them."""

import pytest
import torch

from sample_attention import reference
from sample_attention.dense import dense_with_lse, limited
from sample_attention.dense.flash import attention_with_lse
from sample_attention.dense.sdpa import MergedAttention, SdpaAttention
from sample_attention.problem import Problem
from sample_attention.testing import make_qkv

SCALE, CAP, WINDOW, LENGTH, QUERIES = 1.0, 50.0, 90, 256, 100


def limits(**given):
    return lambda q, k, v: limited(q, k, v, Problem.of(q, k, v), SCALE, **given)


def square(call):
    """A call that needs as many queries as keys; the other rows are left out."""

    def run(q, k, v):
        whole = torch.cat([k[:, :, : LENGTH - QUERIES], q], 2)
        return [x if x is None else x[:, :, -QUERIES:] for x in call(whole, k, v)]

    return run


ROUTES = {
    "softcap": limits(softcap=CAP),
    "window": limits(window=WINDOW),
    "softcap and window": limits(softcap=CAP, window=WINDOW),
    "dense": lambda q, k, v: dense_with_lse(q, k, v, Problem.of(q, k, v), SCALE),
    "sdpa": square(lambda q, k, v: SdpaAttention()(q, k, v, SCALE)),
    "merged": lambda q, k, v: MergedAttention()(q, k, v, SCALE),
    "fused": square(lambda q, k, v: attention_with_lse(q, k, v, SCALE, causal=True)),
}


def exactly(q, k, v, *, softcap, window):
    """Out and lse in the dtype of the inputs."""
    scores = q @ k.mT * SCALE
    if softcap:
        scores = CAP * torch.tanh(scores / CAP)
    p, j = torch.arange(LENGTH - QUERIES, LENGTH)[:, None], torch.arange(LENGTH)
    hidden = (j > p) | (j <= p - WINDOW) if window else j > p
    scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_scores_are_not_rounded_to_halves(route, dtype):
    random = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 2, LENGTH, 64, generator=random) for _ in range(3))
    # Scores of 30 and more, near each other: rounded ones would change the softmax.
    q, k, v = (2 * q[:, :, -QUERIES:]).to(dtype), (2 * k).to(dtype), v.to(dtype)
    out, lse = ROUTES[route](q, k, v)
    which = {"softcap": "softcap" in route, "window": "window" in route}
    exact, exact_lse = exactly(q.double(), k.double(), v.double(), **which)
    # The result is rounded once, and a fused kernel may round each probability.
    step = torch.finfo(dtype).eps
    assert (out.double() - exact).abs().max() <= step * v.abs().max().double()
    if lse is not None:
        wide = q.float(), k.float(), v.float()
        plain = (exactly(*wide, **which)[1].double() - exact_lse).abs().max()
        assert (lse.double() - exact_lse).abs().max() <= 2 * plain + step / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounded_scores_would_be_seen(dtype):
    q, k, v = (x[0].to(dtype) for x in make_qkv(LENGTH, head_dim=64, seed=3))
    q, k = 2 * q, 2 * k
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(len(q), -1, -1)
    exact, _ = reference.attend(q.double(), k.double(), v.double(), mask)
    rounded, _ = reference.attend(q, k, v, mask)
    assert (rounded.double() - exact).abs().max() > torch.finfo(dtype).eps * v.abs().max().double()
