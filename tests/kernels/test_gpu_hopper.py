"""The Hopper backend on an H100 or H200: the oracle, awkward shapes, pages, graphs, same bits."""

from dataclasses import replace

import pytest
import torch

from sample_attention import SampleAttentionConfig, Sequences, attend, select
from sample_attention.testing import (
    assert_matches_oracle,
    make_pages,
    make_plan,
    make_qkv,
    nan_poison,
)

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="no GPU of sm_90")]

CONFIGS = {
    "default": SampleAttentionConfig(dense_prefix=128, window=100, coverage=0.5),
    "segments-of-256": SampleAttentionConfig(dense_prefix=0, window=100, segment=256, coverage=0.6),
    "segments-of-512": SampleAttentionConfig(
        dense_prefix=0, window=1, segment=512, pool=None, row_stride=16, coverage=0.9
    ),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def on_gpu(q_len=700, kv_len=None, *, dtype=torch.bfloat16, dim=128, heads=4, kv_heads=2):
    return [
        x.cuda()
        for x in make_qkv(
            q_len, kv_len, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, dtype=dtype
        )
    ]


def check(q, k, v, plan):
    with nan_poison():
        out, lse = attend(q, k, v, plan, backend="hopper")
    assert_matches_oracle(out, lse, q, k, v, plan)
    return out, lse


@each_config
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_matches_the_oracle(config, dtype, dim):
    q, k, v = on_gpu(2000, dtype=dtype, dim=dim)
    check(q, k, v, select(q, k, config))


@each_config
@pytest.mark.parametrize(
    ("heads", "kv_heads", "q_len", "kv_len"),
    [(7, 1, 333, 1000), (2, 2, 1, 700), (12, 2, 129, 129), (4, 4, 64, 1279), (3, 1, 127, 128)],
)
def test_awkward_shapes(config, heads, kv_heads, q_len, kv_len):
    q, k, v = on_gpu(q_len, kv_len, heads=heads, kv_heads=kv_heads)
    check(q, k, v, select(q, k, config))


def test_rows_without_a_key_are_zero():
    q, k, v = on_gpu(257, heads=1, kv_heads=1)
    sequences = select(q, k, CONFIGS["default"]).sequences
    lists = [[[[], [3], []]]]
    plan = make_plan(sequences, lists, segment=128, window=0, window_alignment=128)
    out, lse = check(q, k, v, plan)
    assert not out[0, 0, 0].any()
    assert not out[0, 0, 256].any()
    assert torch.isneginf(lse[0, 0, 256])


def test_dense_segments_and_empty_lists():
    q, k, v = on_gpu(500, heads=2, kv_heads=1)
    sequences = select(q, k, CONFIGS["default"]).sequences
    lists = [[[[-1], [], [-1], [0, 5, 200]], [[], [0], list(range(200)), [-1]]]]
    plan = make_plan(sequences, lists, segment=128, window=30, window_alignment=128)
    check(q, k, v, plan)


def test_more_tiles_than_programs():
    q, k, v = on_gpu(9000, heads=12, kv_heads=2)
    check(q, k, v, select(q, k, CONFIGS["default"]))


def test_strides_that_rows_cannot_be_copied_by():
    q, k, v = on_gpu(700, heads=4, kv_heads=2, dim=64)
    plan = select(q, k, CONFIGS["default"])
    expected = attend(q, k, v, plan, backend="hopper")
    wide = [torch.cat([x, x[..., :8]], -1)[..., :64] for x in (q, k, v)]
    out, lse = attend(*wide, plan, backend="hopper")
    assert torch.equal(out, expected.out)
    assert torch.equal(lse, expected.lse)


def test_keys_and_values_of_different_strides():
    q, k, v = on_gpu(700)
    plan = select(q, k, CONFIGS["default"])
    expected = attend(q, k, v, plan, backend="hopper")
    turned = v.transpose(1, 2).contiguous().transpose(1, 2)
    assert turned.stride() != k.stride()
    assert torch.equal(attend(q, k, turned, plan, backend="hopper").out, expected.out)


def test_offsets_beyond_two_to_the_31():
    kv_len = 2**31 // (128 * 1024) + 1000
    k = torch.randn(1, kv_len, 1024, 128, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    q = torch.randn(1, 1, 300, 128, device="cuda", dtype=torch.bfloat16)
    k = k[:, -1:]
    plan = select(q, k, CONFIGS["default"], backend="eager")
    check(q, k, k, plan)


@each_config
@pytest.mark.parametrize("page_size", [1, 5, 16, 64, 256])
def test_pages_do_not_change_a_bit(page_size, config):
    q, k, v = (x[0].transpose(0, 1) for x in on_gpu(1000, 2000))
    q_ends, kv_ends = torch.tensor([0, 700, 701, 1000]), torch.tensor([0, 1500, 1501, 2000])
    packed = Sequences.packed_from(q_ends.cuda(), kv_ends.cuda())
    k_pages, v_pages, paged = make_pages(k, v, packed, page_size)
    plan = select(q, k, config, sequences=packed, backend="eager")
    expected = attend(q, k, v, plan, backend="hopper")
    assert_matches_oracle(*expected, q, k, v, plan)
    with nan_poison():
        out, lse = attend(q, k_pages, v_pages, replace(plan, sequences=paged), backend="hopper")
    assert torch.equal(out, expected.out)
    assert torch.equal(lse, expected.lse)


def test_same_input_same_bits():
    q, k, v = on_gpu(6000)
    plan = select(q, k, CONFIGS["default"])
    first = attend(q, k, v, plan, backend="hopper")
    for _ in range(10):
        again = attend(q, k, v, plan, backend="hopper")
        assert torch.equal(first.out, again.out)
        assert torch.equal(first.lse, again.lse)


def test_a_call_does_not_depend_on_its_batch():
    q, k, v = (torch.cat([x, x.flip(2)]) for x in on_gpu(1500))
    plan = select(q, k, CONFIGS["default"])
    both = attend(q, k, v, plan, backend="hopper")
    alone = select(q[:1], k[:1], CONFIGS["default"])
    assert torch.equal(attend(q[:1], k[:1], v[:1], alone, backend="hopper").out, both.out[:1])


def test_replays_in_a_graph_without_a_host_sync():
    q, k, v = on_gpu(1000)
    plan = select(q, k, CONFIGS["default"])
    attend(q, k, v, plan, backend="hopper")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            out, lse = attend(q, k, v, plan, backend="hopper")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    q.copy_(q.flip(2))
    for _ in range(2):
        graph.replay()
        assert_matches_oracle(out, lse, q, k, v, plan)
