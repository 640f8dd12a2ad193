"""XAttention against its rule, one pair of groups at a time."""

import pytest
import torch

import sample_attention as sa
from sample_attention.errors import InvalidConfig
from sample_attention.methods import XAttention, xattention
from sample_attention.testing import make_qkv, plan_masks

BLOCK = 32


def group_mass(q, k, stride):
    """Causal softmax over the groups of keys of each group of queries that has rows."""
    q_len, kv_len = len(q), len(k)
    offset = kv_len - q_len
    mass = {}
    for a in range(offset // stride, -(-kv_len // stride)):
        scores = []
        for b in range(a + 1):
            score = 0.0
            for t in range(stride):
                i, j = a * stride + stride - 1 - t - offset, b * stride + t
                if 0 <= i < q_len and j < kv_len:
                    score += float(q[i] @ k[j]) * q.shape[1] ** -0.5 / stride
            scores.append(score)
        mass[a] = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0)
    return mass


def kept_blocks(q, k, stride, threshold):
    per_block = BLOCK // stride
    mass = group_mass(q, k, stride)
    for r in range((len(k) - len(q)) // BLOCK, -(-len(k) // BLOCK)):
        sums = [0.0] * (r + 1)
        for a in range(r * per_block, (r + 1) * per_block):
            for b, m in enumerate(mass.get(a, ())):
                sums[b // per_block] += float(m)
        kept = {0, r}
        others = sorted(set(range(r + 1)) - kept, key=lambda c, s=sums: -s[c])
        while others and sum(sums[c] for c in kept) < threshold * sum(sums):
            kept.add(others.pop(0))
        yield r, kept


@pytest.mark.parametrize(("q_len", "kv_len"), [(256, 256), (250, 250), (96, 250), (70, 203)])
@pytest.mark.parametrize(("stride", "threshold"), [(16, 0.6), (8, 0.8), (4, 0.95)])
def test_blocks_are_those_of_the_rule(q_len, kv_len, stride, threshold, monkeypatch):
    monkeypatch.setattr(xattention, "SCORES_AT_ONCE", 3000)  # several rows of blocks at a time
    q, k, _ = make_qkv(q_len, kv_len, num_heads=4, num_kv_heads=2, dtype=torch.float64)
    plan = sa.select(q, k, XAttention(stride, threshold, BLOCK))
    masks = plan_masks(plan)
    p, j = torch.arange(kv_len - q_len, kv_len)[:, None], torch.arange(kv_len)[None]
    for h in range(4):
        table = torch.zeros(-(-kv_len // BLOCK), -(-kv_len // BLOCK), dtype=torch.bool)
        for r, kept in kept_blocks(q[0, h], k[0, h // 2], stride, threshold):
            table[r, list(kept)] = True
        assert torch.equal(masks[h], table[p // BLOCK, j // BLOCK] & (j <= p))
    assert plan.density().mean() < 1


def test_stride_must_divide_the_block():
    with pytest.raises(InvalidConfig, match="stride=24 must divide block=128"):
        XAttention(stride=24)


def test_blocks_are_tiles_of_the_kernels():
    with pytest.raises(InvalidConfig, match="block must be a power of two from 16 up, got 48"):
        XAttention(block=48)
