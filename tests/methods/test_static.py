"""Methods that keep the same for every input, against their definition row by row."""

import pytest
import torch

import sample_attention as sa
from sample_attention.errors import InvalidConfig
from sample_attention.methods import METHODS, BigBird, StreamingLLM
from sample_attention.testing import make_qkv, plan_masks

LENGTHS = [(130, 130), (300, 300), (70, 333)]


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize(("sinks", "window"), [(4, 20), (0, 1), (200, 60)])
def test_streaming_llm_keeps_sinks_and_window(q_len, kv_len, sinks, window):
    q, k, _ = make_qkv(q_len, kv_len, num_heads=2, num_kv_heads=1)
    masks = plan_masks(sa.select(q, k, StreamingLLM(sinks, window)))
    for i in range(q_len):
        p = i + kv_len - q_len
        kept = [j <= p and (j < sinks or j > p - window) for j in range(kv_len)]
        assert masks[:, i].tolist() == [kept, kept]


def test_a_shape_is_that_of_minference():
    assert METHODS["a_shape"] == StreamingLLM(sinks=128, window=3968)


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_bigbird_keeps_window_global_and_random_blocks(q_len, kv_len):
    method = BigBird(block=16, window_blocks=5, global_blocks=3, random_blocks=2)
    q, k, _ = make_qkv(q_len, kv_len, num_heads=3)
    masks = plan_masks(sa.select(q, k, method))
    blocks = -(-kv_len // 16)
    for h in range(3):
        for i in range(q_len):
            p = i + kv_len - q_len
            row_block = p // 16
            kept = {j // 16 for j in masks[h, i].nonzero()[:, 0].tolist()}
            assert masks[h, i].tolist() == [j <= p and j // 16 in kept for j in range(kv_len)]
            visible = set(range(row_block + 1))
            always = {c for c in visible if c >= row_block - 2 or c < 2}
            if row_block == blocks - 1:  # the global block at the end
                always = visible
            assert always <= kept <= visible
            assert len(kept - always) == min(2, len(visible - always))


def test_random_blocks_differ_by_head_and_block_and_repeat_by_seed():
    q, k, _ = make_qkv(1600, num_heads=2, head_dim=16)
    method = BigBird(block=16, window_blocks=1, global_blocks=0, random_blocks=3)
    plan, again = sa.select(q, k, method), sa.select(q, k, method)
    assert torch.equal(plan.indices, again.indices)
    lists = [tuple(plan.columns(0, h, g).tolist()) for h in range(2) for g in range(50, 100)]
    assert len(set(lists)) == len(lists)
    drawn = torch.tensor(lists).double() / torch.arange(50, 100).repeat(2)[:, None]
    assert 0.4 < drawn.mean() < 0.6
    other = sa.select(q, k, BigBird(16, 1, 0, 3, seed=1))
    assert not torch.equal(plan.indices, other.indices)


def test_random_blocks_do_not_depend_on_chunks():
    q, k, _ = make_qkv(320)
    method = BigBird(block=16, global_blocks=1)
    whole = plan_masks(sa.select(q, k, method))
    part = plan_masks(sa.select(q[:, :, 160:240], k[:, :, :240], method))
    assert torch.equal(part, whole[:, 160:240, :240])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (StreamingLLM, {"window": 0}, "window must be an integer from 1"),
        (StreamingLLM, {"sinks": -1}, "sinks must be an integer from 0"),
        (BigBird, {"block": 48}, "block must be a power of two from 16 up, got 48"),
        (BigBird, {"window_blocks": 0}, "window_blocks must be an integer from 1"),
    ],
)
def test_settings_out_of_range_are_refused(method, options, message):
    with pytest.raises(InvalidConfig, match=message):
        method(**options)
