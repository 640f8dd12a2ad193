"""On an NVIDIA GPU: every dense provider that is installed, against the oracle."""

import pytest
import torch

import sample_attention as sa
from sample_attention import SampleAttentionConfig, Sequences
from sample_attention.dense import dense, dense_with_lse
from sample_attention.dense.base import Facts
from sample_attention.dense.registry import PROVIDERS, choose_provider
from sample_attention.problem import Problem
from sample_attention.testing import assert_matches_oracle, make_qkv, nan_poison

pytestmark = pytest.mark.gpu


@pytest.fixture(params=PROVIDERS, ids=lambda provider: provider.name.split()[0])
def provider(request):
    return request.param


def on_gpu(q_len, kv_len, *, dim=128, heads=4, kv_heads=2, batch=2, dtype=torch.bfloat16):
    shape = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim, "dtype": dtype}
    return [x.cuda() for x in make_qkv(q_len, kv_len, batch=batch, **shape)]


def skip_if_refused(provider, problem):
    reason = provider.refusal(Facts.of(problem))
    if reason is not None:
        pytest.skip(f"{provider.name}: {reason}")


def every_key(q, k, sequences=None):
    return sa.select(q, k, SampleAttentionConfig(coverage=1), sequences=sequences, backend="eager")


def check(provider, q, k, v, scale=None):
    problem = Problem.of(q, k, v)
    skip_if_refused(provider, problem)
    with nan_poison():
        out, lse = provider(q, k, v, problem.scale(scale))
    assert_matches_oracle(out, lse, q, k, v, every_key(q, k), scale=scale)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (7, 1)], ids=str)
@pytest.mark.parametrize("lengths", [(700, 700), (129, 129), (333, 1000), (2, 77)], ids=str)
def test_lengths_and_groups(provider, lengths, heads):
    check(provider, *on_gpu(*lengths, heads=heads[0], kv_heads=heads[1]))


@pytest.mark.parametrize("dim", [40, 64, 80, 96, 192, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_head_dims_and_dtypes(provider, dim, dtype):
    for q_len in (300, 200):
        check(provider, *on_gpu(q_len, 300, dim=dim, dtype=dtype))


def test_scale(provider):
    check(provider, *on_gpu(200, 200), scale=0.3)


def test_strides(provider):
    q, k, v = on_gpu(300, 300, heads=4, kv_heads=4)
    odd = torch.cat([k, k[..., :1]], -1)[..., :128]
    rows_first = q.transpose(1, 2).contiguous().transpose(1, 2)
    check(provider, rows_first, odd, v[:1].expand(2, -1, -1, -1))


def test_packed(provider):
    q, k, v = (x[0].transpose(0, 1) for x in on_gpu(710, 1000, batch=1))
    ends = torch.tensor([0, 1, 300, 700]), torch.tensor([0, 200, 500, 1000])
    sequences = Sequences.packed_from(*(x.cuda() for x in ends))
    problem = Problem.of(q, k, v, sequences)
    skip_if_refused(provider, problem)
    views = [x.transpose(0, 1)[None] for x in (q, k, v)]
    with nan_poison():
        out, lse = provider(*views, problem.scale(None), sequences)
    # Ten tokens are of no sequence. A fused kernel leaves them, we fill them.
    out, plan = out[0].transpose(0, 1), every_key(q, k, sequences)
    assert_matches_oracle(out, lse[0], q, k, v, plan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("q_len", [1, 150, 200])
def test_dense_of_padded_sequences(q_len, dtype):
    q, k, v = on_gpu(q_len, 200, dtype=dtype)
    sequences = Sequences.left_padded(torch.tensor([200, 90]).cuda(), q_len, 200)
    problem = Problem.of(q, k, v, sequences)
    plan = every_key(q, k, sequences)
    with nan_poison():
        out = dense(q, k, v, problem, problem.scale(None))
        both = dense_with_lse(q, k, v, problem, problem.scale(None))
    assert_matches_oracle(out, None, q, k, v, plan)
    assert_matches_oracle(*both, q, k, v, plan)


def test_packed_sequences_do_not_wait_for_the_device():
    q, k, v = (x[0].transpose(0, 1) for x in on_gpu(700, 700, batch=1))
    sequences = Sequences.packed_from(torch.tensor([0, 300, 700]).cuda())
    problem = Problem.of(q, k, v, sequences)
    if choose_provider(Facts.of(problem)) is None:
        pytest.skip("no provider takes packed sequences in one call")
    views = [x.transpose(0, 1)[None] for x in (q, k, v)]
    dense(*views, problem, problem.scale(None))
    torch.cuda.set_sync_debug_mode("error")
    try:
        dense(*views, problem, problem.scale(None))
    finally:
        torch.cuda.set_sync_debug_mode("default")
