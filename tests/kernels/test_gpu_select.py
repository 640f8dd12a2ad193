"""Selection on an NVIDIA GPU: what it selects, the same bits always, no wait for the device."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch

from sample_attention import SampleAttentionConfig, Sequences, attend, select
from sample_attention.testing import make_pages, make_qkv, nan_poison

pytestmark = pytest.mark.gpu

CONFIGS = {
    "default": SampleAttentionConfig(dense_prefix=128, window=100, coverage=0.7),
    "few probes": SampleAttentionConfig(dense_prefix=128, window=100, coverage=0.7, probes=64),
    "a coverage for each head": SampleAttentionConfig(
        dense_prefix=128, window=100, head_coverage=(0.4, 0.7, 0.7, 0.95)
    ),
    "pooled": SampleAttentionConfig.preset("pooled", dense_prefix=128, window=100, coverage=0.7),
    "paper": SampleAttentionConfig.preset("paper", coverage=0.7),
    "mlsys": SampleAttentionConfig.preset("mlsys", coverage=0.5, slash_coverage=0.5),
}
BY_SEGMENT = {
    **{name: CONFIGS[name] for name in ("default", "few probes", "pooled")},
    "many rows": SampleAttentionConfig.preset(
        "pooled", segment=512, row_stride=2, pool=None, dense_prefix=0, dense_tail=0, window=100,
        coverage=0.7,
    ),
}  # fmt: skip
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def on_gpu(q_len=2048, kv_len=None, **options):
    shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 128, "dtype": torch.bfloat16}
    return [x.cuda() for x in make_qkv(q_len, kv_len, **{**shape, **options})]


def lists_of(plan, n=0, segments=None):
    """Dense flags, counts and the listed columns, by head and segment, of one sequence."""
    segments = plan.counts.shape[2] if segments is None else segments
    return [
        [None if plan.dense[n, h, g] else plan.columns(n, h, g).tolist() for g in range(segments)]
        for h in range(plan.num_heads)
    ]


@contextlib.contextmanager
def no_waiting():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("config", [*CONFIGS.values(), BY_SEGMENT["many rows"]], ids=str)
def test_equals_the_reference(assert_selected, config):
    for lengths in ((2048, 2048), (700, 1500)):
        q, k, _ = on_gpu(*lengths)
        with nan_poison():
            plan = select(q, k, config, backend="triton")
        assert_selected(plan, q[0], k[0], config)
        assert (plan.density() < 1).any()


@every_config
def test_same_input_same_bits(config):
    q, k, _ = on_gpu()
    first = select(q, k, config, backend="triton")
    used = int((first.offsets + first.counts).max())
    for _ in range(5):
        again = select(q, k, config, backend="triton")
        assert torch.equal(again.indices[:used], first.indices[:used])
        for name in ("offsets", "counts", "dense"):
            assert torch.equal(getattr(again, name), getattr(first, name))


@every_config
def test_other_sequences_change_nothing(config):
    q, k, v = (x[0].transpose(0, 1) for x in on_gpu(2048, 4096))
    q_ends, kv_ends = torch.tensor([0, 1024, 1040, 2048]), torch.tensor([0, 2048, 2064, 4096])
    packed = Sequences.packed_from(q_ends.cuda(), kv_ends.cuda())
    together = select(q, k, config, sequences=packed, backend="triton")
    for n, (_, q0, q_len, k0, kv_len) in enumerate(packed.rows()):
        alone = [
            x[start : start + length].transpose(0, 1)[None]
            for x, start, length in ((q, q0, q_len), (k, k0, kv_len))
        ]
        expected = lists_of(select(*alone, config, backend="triton"))
        assert lists_of(together, n, len(expected[0])) == expected
    pages, _, paged = make_pages(k, v, packed, 16)
    again = select(q, pages, config, sequences=paged, backend="triton")
    for n in range(3):
        assert lists_of(again, n) == lists_of(together, n)


@pytest.mark.parametrize("config", BY_SEGMENT.values(), ids=BY_SEGMENT)
def test_chunks_of_a_prompt_change_nothing(config):
    config = replace(config, dense_tail=0)  # a tail ends the call, not the prompt
    q, k, _ = on_gpu()
    whole = lists_of(select(q, k, config, backend="triton"))
    for first, stop in ((0, 1024), (1024, 2048)):
        part = select(q[:, :, first:stop], k[:, :, :stop], config, backend="triton")
        segments = slice(first // config.segment, stop // config.segment)
        assert lists_of(part) == [head[segments] for head in whole]


@every_config
def test_a_call_does_not_wait(config):
    q, k, v = on_gpu()
    expected = attend(q, k, v, select(q, k, config, backend="triton"), backend="triton")
    with no_waiting():
        plan = select(q, k, config, backend="triton")
        out, lse = attend(q, k, v, plan, backend="triton")
    assert torch.equal(out, expected.out)
    assert torch.equal(lse, expected.lse)


@every_config
def test_a_graph_selects_anew(config):
    q, k, v = on_gpu()
    others = on_gpu(seed=1)

    def call():
        return attend(q, k, v, select(q, k, config, backend="triton"), backend="triton")

    call()
    graph = torch.cuda.CUDAGraph()
    with no_waiting(), torch.cuda.graph(graph):
        out, lse = call()
    for inputs in (others, [x.flip(2) for x in others]):
        for static, x in zip((q, k, v), inputs, strict=True):
            static.copy_(x)
        out.fill_(torch.nan)
        graph.replay()
        fresh = call()
        assert torch.equal(out, fresh.out)
        assert torch.equal(lse, fresh.lse)


@every_config
def test_streams_do_not_share_unfinished_work(config):
    q, k, _ = on_gpu(1900)  # a length that no other test has, so that this call makes its geometry
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    plans = []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10**7)
            plans.append(select(q, k, config, backend="triton"))
    torch.cuda.synchronize()
    assert lists_of(plans[0]) == lists_of(plans[1]) == lists_of(select(q, k, config))


FAR = {"heads": (2**31 // 3 * 2, 128), "keys": (128, 2**21)}
"""Strides of heads and of keys that put some of 4 heads, or of 2048 keys, beyond 2^31 elements."""


@pytest.mark.parametrize("strides", FAR)
@every_config
def test_offsets_beyond_32_bits(config, strides):
    near = on_gpu()
    far = []
    for x in near:
        memory = torch.empty(2**33, dtype=torch.bfloat16, device="cuda")
        far.append(memory.as_strided(x.shape, (0, *FAR[strides], 1)).copy_(x))
    q, k, v = far if strides == "heads" else (near[0], *far[1:])
    expected = select(*near[:2], config, backend="triton")
    plan = select(q, k, config, backend="triton")
    assert lists_of(plan) == lists_of(expected)
    given = attend(q, k, v, plan, backend="triton")
    wanted = attend(*near, expected, backend="triton")
    assert torch.equal(given.out, wanted.out)
    assert torch.equal(given.lse, wanted.lse)
    del far, memory, q, k, v
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", ["default", "pooled"])
def test_a_million_keys(name):
    """A few rows of a long prompt against those rows in fp64."""
    length = 2**20
    random = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, h, length, 128, generator=random, device="cuda", dtype=torch.bfloat16)
        for h in (4, 1, 1)
    )
    k[:, :, ::4096] *= 4  # some columns to find
    config = replace(CONFIGS[name], coverage=0.3)
    q, plan_q = q[:, :, -4096:], q[:, :, -4096:]
    plan = select(plan_q, k, config, backend="triton")
    out, lse = attend(q, k, v, plan, backend="triton")
    rows = torch.tensor([0, 1, 2047, 4095], device="cuda")
    for h in range(4):
        scores = (q[0, h, rows].double() @ k[0, 0].double().T) * 128**-0.5
        for i, row in enumerate(rows.tolist()):
            position, g = length - 4096 + row, row // 128
            keep = torch.zeros(length, dtype=torch.bool, device="cuda")
            keep[max(0, position // 128 * 128 - config.window + 1) : position + 1] = True
            if plan.dense[0, h, g]:
                keep[: position + 1] = True
            keep[plan.columns(0, h, g).long()] = True
            kept = scores[i].masked_fill(~keep, -math.inf)
            exact = kept.softmax(-1) @ v[0, 0].double()
            plain = kept.to(q.dtype).softmax(-1) @ v[0, 0]
            budget = 2 * (plain - exact).abs().max() + torch.finfo(q.dtype).eps * exact.abs().max()
            assert (out[0, h, row] - exact).abs().max() <= budget
            largest = float(scores[i].abs().max())
            bound = torch.finfo(torch.float32).eps * largest * math.sqrt(128 + length)
            assert abs(float(lse[0, h, row]) - float(kept.logsumexp(-1))) <= bound
