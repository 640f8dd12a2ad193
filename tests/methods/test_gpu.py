"""On an NVIDIA GPU: the plans of the CPU, attended to by the kernels, within memory and time."""

import time

import pytest
import torch

from sample_attention import attend, select
from sample_attention.methods import METHODS
from sample_attention.testing import assert_matches_oracle, make_qkv, plan_masks

pytestmark = pytest.mark.gpu


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def test_the_plan_is_that_of_the_cpu(method):
    q, k, _ = make_qkv(1500, num_heads=4, num_kv_heads=2, dtype=torch.float64)
    turned = method.turned(0.1, 1500)
    on_gpu = select(q.cuda(), k.cuda(), turned)
    expected = plan_masks(select(q, k, turned))
    assert torch.equal(plan_masks(on_gpu).cpu(), expected)


def test_kernels_attend_to_the_plan(method):
    q, k, v = (
        x.cuda()
        for x in make_qkv(1000, num_heads=4, num_kv_heads=2, head_dim=128, dtype=torch.bfloat16)
    )
    plan = select(q, k, method.turned(0.1, 1000))
    out, lse = attend(q, k, v, plan, backend="triton")
    assert_matches_oracle(out, lse, q, k, v, plan)


@pytest.mark.slow
def test_a_long_prompt_selects_within_a_second_and_8_gigabytes(method, capsys):
    q, k, v = (
        x.cuda()
        for x in make_qkv(32768, num_heads=28, num_kv_heads=4, head_dim=128, dtype=torch.bfloat16)
    )
    select(q, k, method)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, start = torch.cuda.memory_allocated(), time.perf_counter()
    plan = select(q, k, method)
    torch.cuda.synchronize()
    seconds, extra = time.perf_counter() - start, torch.cuda.max_memory_allocated() - held
    assert attend(q, k, v, plan, backend="triton").out.isfinite().all()
    with capsys.disabled():
        density = float(plan.density().mean())
        print(
            f" {method}: {seconds:.3f} s, {extra / 2**30:.1f} GiB, density {density:.3f} ", end=""
        )
    assert seconds < 1
    assert extra < 8 * 2**30
