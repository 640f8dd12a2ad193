"""On an NVIDIA GPU: kernels against the oracle, determinism, no host sync, CUDA graphs."""

from dataclasses import replace

import pytest
import torch

from sample_attention import SampleAttentionConfig, Sequences, attend, select
from sample_attention.testing import assert_matches_oracle, make_pages, make_qkv, nan_poison

pytestmark = pytest.mark.gpu

CONFIGS = {
    "segments-of-32": SampleAttentionConfig.preset(
        "pooled", dense_prefix=0, dense_tail=0, window=16, segment=32, pool=8, row_stride=4,
        coverage=0.8,
    ),
    "segments-of-256": SampleAttentionConfig.preset(
        "pooled", dense_prefix=0, dense_tail=0, window=100, segment=256, coverage=0.6
    ),
    "default": SampleAttentionConfig(dense_prefix=128, window=100, coverage=0.5),
    "pooled": SampleAttentionConfig.preset("pooled", dense_prefix=128, window=100, coverage=0.5),
    "paper": SampleAttentionConfig.preset("paper", coverage=0.7, dense_tail=7),
    "mlsys": SampleAttentionConfig.preset("mlsys", coverage=0.5, slash_coverage=0.5),
}  # fmt: skip


def on_gpu(dtype=torch.bfloat16, *, dim=128, q_len=700, kv_len=700, heads=4, kv_heads=2):
    return [
        x.cuda()
        for x in make_qkv(
            q_len, kv_len, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, dtype=dtype
        )
    ]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_attend_matches_the_oracle(config, dtype):
    for heads, kv_heads, q_len, kv_len in ((4, 2, 700, 700), (7, 1, 333, 1000)):
        q, k, v = on_gpu(dtype, heads=heads, kv_heads=kv_heads, q_len=q_len, kv_len=kv_len)
        plan = select(q, k, config)
        with nan_poison():
            out, lse = attend(q, k, v, plan, backend="triton")
        assert_matches_oracle(out, lse, q, k, v, plan)


@pytest.mark.parametrize("dim", [64, 80, 96, 192, 256])
def test_head_dims(dim):
    q, k, v = on_gpu(dim=dim, q_len=333, kv_len=1000)
    plan = select(q, k, CONFIGS["default"])
    assert_matches_oracle(*attend(q, k, v, plan, backend="triton"), q, k, v, plan)


def test_same_input_same_bits():
    q, k, v = on_gpu(q_len=2000, kv_len=2000)
    plan = select(q, k, CONFIGS["default"])
    first = attend(q, k, v, plan, backend="triton")
    for _ in range(5):
        again = attend(q, k, v, plan, backend="triton")
        assert torch.equal(first.out, again.out)
        assert torch.equal(first.lse, again.lse)


def test_attend_replays_in_a_graph_without_a_host_sync():
    q, k, v = on_gpu(q_len=1000, kv_len=1000)
    plan = select(q, k, CONFIGS["default"])
    attend(q, k, v, plan, backend="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            out, lse = attend(q, k, v, plan, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    q.copy_(q.flip(2))
    graph.replay()
    assert_matches_oracle(out, lse, q, k, v, plan)


def packed_and_paged(page_size):
    """The same three sequences with cached prefixes, packed and in pages."""
    q, k, v = (x[0].transpose(0, 1) for x in on_gpu(q_len=1000, kv_len=2000))
    q_ends, kv_ends = torch.tensor([0, 700, 701, 1000]), torch.tensor([0, 1500, 1501, 2000])
    packed = Sequences.packed_from(q_ends.cuda(), kv_ends.cuda())
    return (q, k, v, packed), (q, *make_pages(k, v, packed, page_size))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("page_size", [1, 5, 16, 64, 256])
def test_pages_do_not_change_a_bit(page_size, config):
    (q, k, v, packed), (_, k_pages, v_pages, paged) = packed_and_paged(page_size)
    plan = select(q, k, config, sequences=packed, backend="eager")
    expected = attend(q, k, v, plan, backend="triton")
    plan = replace(plan, sequences=paged)
    with nan_poison():
        out, lse = attend(q, k_pages, v_pages, plan, backend="triton")
    assert torch.equal(out, expected.out)
    assert torch.equal(lse, expected.lse)


def test_paged_calls_do_not_wait_for_the_device():
    (q, k, _, packed), (_, k_pages, v_pages, paged) = packed_and_paged(16)
    plan = replace(select(q, k, sequences=packed, backend="eager"), sequences=paged)
    expected = attend(q, k_pages, v_pages, plan, backend="triton")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, lse = attend(q, k_pages, v_pages, plan, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out, expected.out)
    assert torch.equal(lse, expected.lse)


@pytest.mark.parametrize("preset", ["default", "pooled", "paper", "mlsys"])
def test_eager_on_the_gpu_equals_eager_on_the_cpu(preset):
    shape = {"q_len": 1500, "num_heads": 4, "num_kv_heads": 2}
    q, k, v = make_qkv(**shape, dtype=torch.float64)
    config = SampleAttentionConfig.preset(preset, coverage=0.7)
    here, there = select(q, k, config), select(q.cuda(), k.cuda(), config)
    assert torch.equal(here.indices, there.indices.cpu())
    assert torch.equal(here.dense, there.dense.cpu())
    out, lse = attend(q.cuda(), k.cuda(), v.cuda(), there, backend="eager")
    assert_matches_oracle(out, lse, q.cuda(), k.cuda(), v.cuda(), there)
