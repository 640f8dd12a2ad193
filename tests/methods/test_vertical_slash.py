"""Vertical-slash of MInference against its published loops, one head and tile at a time."""

import pytest
import torch

import sample_attention as sa
from sample_attention import reference
from sample_attention.errors import InvalidConfig
from sample_attention.methods import VerticalSlash
from sample_attention.testing import make_qkv, plan_masks


def ranked(q, k, columns, slashes):
    """The best keys and distances by the exact softmax of the last 64 rows."""
    prob = reference.probabilities(q, k)[:, -64:]
    rows, kv_len = prob.shape[1:]
    for head in prob:
        by_key = head.sum(0)
        by_distance = torch.zeros(kv_len, dtype=prob.dtype)
        for r in range(rows):
            p = kv_len - rows + r
            for j in range(p + 1):
                by_distance[p - j] += head[r, j]
        by_key[:30], by_distance[:100] = torch.inf, torch.inf
        yield [
            sorted(x.topk(min(n, kv_len)).indices.tolist())
            for x, n in ((by_key, columns), (by_distance, slashes))
        ]


def runs(slashes, end):
    """First keys of the 64-key runs of a tile: the merge of the published index kernel."""
    left = [s for s in sorted(slashes, reverse=True) if s < end]
    starts = []
    stop = max(end - left[0], 64)
    start = stop - 64
    for s in left[1:]:
        following = max(end - s, 64)
        if following > stop + 64:
            starts += range(start, stop, 64)
            start, stop = following - 64, following
        elif following > stop:
            stop += 64
    return [*starts, *range(start, stop, 64)]


@pytest.mark.parametrize(("q_len", "kv_len"), [(500, 500), (40, 40), (200, 700)])
@pytest.mark.parametrize(("columns", "slashes"), [(30, 100), (60, 130), (40, 260), (900, 900)])
def test_pattern_is_that_of_the_kernel(q_len, kv_len, columns, slashes):
    q, k, _ = make_qkv(q_len, kv_len, num_heads=2, num_kv_heads=1, dtype=torch.float64)
    masks = plan_masks(sa.select(q, k, VerticalSlash(columns, slashes)))
    for h, (keys, distances) in enumerate(ranked(q[0], k[0], columns, slashes)):
        for tile in range((kv_len - q_len) // 64, -(-kv_len // 64)):
            kept = torch.zeros(kv_len + 64, dtype=torch.bool)
            kept[keys] = True
            for start in runs(distances, 64 * tile + 64):
                kept[start : start + 64] = True
            for p in range(max(64 * tile, kv_len - q_len), min(64 * tile + 64, kv_len)):
                causal = torch.arange(kv_len) <= p
                assert torch.equal(masks[h, p - kv_len + q_len], kept[:kv_len] & causal)


def test_every_chosen_column_and_slash_is_kept():
    q, k, _ = make_qkv(600, dtype=torch.float64)
    masks = plan_masks(sa.select(q, k, VerticalSlash(50, 150)))
    p, j = torch.arange(600)[:, None], torch.arange(600)[None]
    for h, (keys, distances) in enumerate(ranked(q[0], k[0], 50, 150)):
        asked = torch.isin(j.expand(600, -1), torch.tensor(keys))
        asked |= torch.isin(p - j, torch.tensor(distances))
        assert masks[h][asked & (j <= p)].all()


@pytest.mark.parametrize("options", [{"columns": 29}, {"slashes": 99}])
def test_the_columns_and_slashes_that_are_always_kept_must_fit(options):
    with pytest.raises(InvalidConfig, match="must be an integer from"):
        VerticalSlash(**options)
