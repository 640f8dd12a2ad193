"""The two methods that hash: against their published rule, joined over 16 rows."""

import pytest
import torch

import sample_attention as sa
from sample_attention.errors import InvalidConfig, InvalidInput
from sample_attention.methods import HashSparse, HyperAttention
from sample_attention.methods.hashing import SEGMENT
from sample_attention.testing import make_qkv, plan_masks


def joined(published, q_len):
    """What a segment keeps: what any of its rows keeps, and each row the rows before it in it."""
    kv_len = published.shape[1]
    p, j = torch.arange(kv_len - q_len, kv_len)[:, None], torch.arange(kv_len)[None]
    segment = p[:, 0] // SEGMENT
    mask = torch.stack([published[segment == g].any(0) for g in segment])
    return (mask | (j >= p // SEGMENT * SEGMENT)) & (j <= p)


def drawn(seed, dim, count):
    return torch.randn(dim, count, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(("q_len", "kv_len"), [(200, 200), (77, 300)])
@pytest.mark.parametrize("buckets", [4, 16])
def test_hash_sparse_keeps_keys_of_equal_hash(q_len, kv_len, buckets):
    q, k, _ = make_qkv(q_len, kv_len, num_heads=4, num_kv_heads=2, dtype=torch.float64)
    masks = plan_masks(sa.select(q, k, HashSparse(buckets, seed=3)))
    for h in range(4):
        axes = torch.nn.functional.normalize(drawn(3 * 2**20 + h, 32, buckets // 2), dim=0)
        rows, keys = (
            [int(torch.cat([axes.T @ x, -axes.T @ x]).argmax()) for x in vectors]
            for vectors in (q[0, h], k[0, h // 2])
        )
        p = torch.arange(kv_len - q_len, kv_len)[:, None]
        published = torch.tensor(rows)[:, None] == torch.tensor(keys)[None]
        published &= torch.arange(kv_len) <= p
        expected = joined(published, q_len)
        assert (masks[h] | ~published).all()
        assert torch.equal(masks[h], expected)


def test_hash_sparse_hashes_are_even():
    with pytest.raises(InvalidConfig, match="buckets must be even, got 5"):
        HashSparse(5)


def hyper_pairs(q, k, method, head):
    """Pairs that the published recursion computes: bool `[S, S]`."""
    kept = torch.zeros(len(q), len(k), dtype=torch.bool)
    axes = drawn(method.seed, q.shape[1], method.projections)

    def hashes(x):
        numbers = [sum(2**i for i, s in enumerate(v @ axes) if s > 0) for v in x]
        return [n ^ (n >> 1) for n in numbers]

    def causal(lo, hi):
        n = hi - lo
        if n <= method.min_keys:
            kept[lo:hi, lo:hi] = True
            return
        mid = lo + (n + 1) // 2
        causal(lo, mid)
        causal(mid, hi)
        if mid - lo < method.min_keys:
            kept[mid:hi, lo:mid] = True
            return
        by_row, by_key = hashes(q[mid:hi]), hashes(k[lo:mid])
        rows = sorted(range(hi - mid), key=lambda i: by_row[i])
        keys = sorted(range(mid - lo), key=lambda j: by_key[j])
        for at in range(0, mid - lo, method.block):
            some = rows[at : at + method.block]
            for j in keys[at : at + method.block]:
                kept[[mid + i for i in some], lo + j] = True
        seed = (method.seed * 2**12 + head) * 2**24 + lo + mid
        generator = torch.Generator().manual_seed(seed)
        kept[mid:hi, lo + torch.randint(mid - lo, (method.samples,), generator=generator)] = True

    causal(0, len(k))
    return kept.tril()


@pytest.mark.parametrize("length", [512, 600, 333, 64])
def test_hyper_attention_keeps_sorted_blocks_and_samples(length):
    method = HyperAttention(projections=4, block=24, samples=5, min_keys=64, seed=7)
    q, k, _ = make_qkv(length, num_heads=2, num_kv_heads=1, dtype=torch.float64)
    plan = sa.select(q, k, method)
    masks = plan_masks(plan)
    for h in range(2):
        published = hyper_pairs(q[0, h], k[0, 0], method, h)
        assert (masks[h] | ~published).all()
        assert torch.equal(masks[h], joined(published, length))


def test_hyper_attention_refuses_a_cached_prefix():
    q, k, _ = make_qkv(100, 300)
    with pytest.raises(InvalidInput, match="200 of the 300 keys came before the call"):
        sa.select(q, k, HyperAttention())
