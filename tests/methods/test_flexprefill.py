"""FlexPrefill against its rule, one head and block at a time."""

import math

import pytest
import torch

import sample_attention as sa
from sample_attention import reference
from sample_attention.methods import FlexPrefill
from sample_attention.testing import make_qkv, plan_masks

BLOCK = 32


def blocks_of(q, k, method):
    """Kept (row block, key block) of each head, and whether the head is query-aware."""
    (_, q_len, dim), kv_len = q.shape, k.shape[1]
    prob = reference.probabilities(q, k)[:, -BLOCK:]
    k = k.repeat_interleave(len(q) // len(k), 0)
    count, least = -(-kv_len // BLOCK), -(-method.min_budget // BLOCK)
    rows = range((kv_len - q_len) // BLOCK, count)
    for h, tail in enumerate(prob):
        keys, distances = torch.zeros(2, kv_len, dtype=tail.dtype)
        for r in range(len(tail)):
            p = kv_len - len(tail) + r
            for j in range(p + 1):
                keys[j] += tail[r, j] / len(tail)
                distances[p - j] += tail[r, j] / len(tail)
        by_column = [float(keys[c * BLOCK : (c + 1) * BLOCK].sum()) for c in range(count)]
        from_left = distances.flip(0)
        by_slash = [float(from_left[c * BLOCK : (c + 1) * BLOCK].sum()) for c in range(count)][::-1]
        mean_keys = torch.stack([x.mean(0) for x in k[h].split(BLOCK)])
        estimate = torch.softmax(mean_keys @ q[h, -BLOCK:].mean(0) * dim**-0.5, 0).tolist()
        aware = divergence(estimate, by_column) < method.divergence
        kept = set()
        for each, pooled, is_column in ((keys, by_column, True), (distances, by_slash, False)):
            n = least if aware else max(least, covering(each, method.coverage) // BLOCK + 1)
            pooled[0] = math.inf
            for best in sorted(range(count), key=lambda c, x=pooled: -x[c])[:n]:
                kept |= {(r, best if is_column else r - best) for r in rows}
        if aware:
            kept |= heaviest(q[h], mean_keys, kv_len - q_len, method.coverage)
        yield {(r, c) for r, c in kept if 0 <= c <= r}, aware


def covering(mass, coverage):
    return int((mass.sort(descending=True).values.cumsum(0) <= coverage).sum()) + 1


def divergence(a, b):
    middle = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    kl = [sum(x * math.log(x / m) for x, m in zip(p, middle, strict=True) if x) for p in (a, b)]
    return math.sqrt(sum(kl) / 2)


def heaviest(q, mean_keys, offset, coverage):
    """Blocks by mean queries and keys, while their sum over all rows stays within the share."""
    rows, masses = range(offset // BLOCK, len(mean_keys)), []
    for r in rows:
        lo, hi = max(r * BLOCK - offset, 0), (r + 1) * BLOCK - offset
        scores = mean_keys[: r + 1] @ q[lo:hi].mean(0) * q.shape[-1] ** -0.5
        masses += [(float(m), (r, c)) for c, m in enumerate(torch.softmax(scores, 0))]
    total, kept = 0.0, set()
    for mass, at in sorted(masses, key=lambda x: -x[0]):
        total += mass
        if total > coverage * len(rows):
            break
        kept.add(at)
    return kept


@pytest.mark.parametrize(
    ("q_len", "kv_len"), [(320, 320), (350, 350), (128, 384), (20, 200), (9, 220)]
)
@pytest.mark.parametrize("threshold", [1e-6, 0.25, 1.0])
def test_blocks_are_those_of_the_rule(q_len, kv_len, threshold):
    method = FlexPrefill(0.8, threshold, min_budget=33, block=BLOCK)
    q, k, _ = make_qkv(q_len, kv_len, num_heads=4, num_kv_heads=2, dtype=torch.float64)
    masks = plan_masks(sa.select(q, k, method))
    p, j = torch.arange(kv_len - q_len, kv_len)[:, None], torch.arange(kv_len)[None]
    seen = set()
    for h, (kept, aware) in enumerate(blocks_of(q[0], k[0], method)):
        seen.add(aware)
        table = torch.zeros(-(-kv_len // BLOCK), -(-kv_len // BLOCK), dtype=torch.bool)
        for at in kept:
            table[at] = True
        assert torch.equal(masks[h], table[p // BLOCK, j // BLOCK] & (j <= p))
    assert seen == {1e-6: {False}, 1.0: {True}}.get(threshold, seen)


@pytest.mark.parametrize(("kv_len", "min_budget"), [(64, 1), (150, 150)])
def test_short_prompts_are_dense(kv_len, min_budget):
    q, k, _ = make_qkv(kv_len)
    plan = sa.select(q, k, FlexPrefill(min_budget=min_budget, block=BLOCK))
    assert (plan.density() == 1).all()
