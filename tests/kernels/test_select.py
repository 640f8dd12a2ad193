"""`select` of every backend against `reference.select`: the same masks, pair by pair."""

import pytest
import torch

from sample_attention import (
    QueryMoments,
    SampleAttentionConfig,
    SampledRows,
    Sequences,
    preset,
    reference,
)
from sample_attention.config import with_fields
from sample_attention.problem import Problem
from sample_attention.reference import default
from sample_attention.testing import make_qkv, plan_masks, split_sequences

LENGTHS = {
    "whole": (300, 300),
    "one row": (1, 200),
    "last segment partial": (337, 337),
    "offset on a segment": (192, 448),
    "offset within a segment": (173, 410),
    "within one segment": (9, 395),
}
SMALL = {"dense_prefix": 0, "dense_tail": 0, "segment": 64, "sample_stride": 8, "window": 40}
POOLED, MOMENTS = preset("pooled", rows=16, **SMALL), preset("default", sampled_keys=None, **SMALL)
HEADS = (0.4, 0.97)
CONFIGS = {
    "segments of 16": {"segment": 16, "sample_stride": 4, "rows": 8, "window": 16},
    "segments of 32": {"segment": 32, "window": 7},
    "segments of 64": {},
    "segments of 128": {"segment": 128, "window": 128},
    "segments of 256": {"segment": 256, "window": 40, "rows": 64},
    "segments of 100": {"segment": 100, "sample_stride": 10, "rows": 25, "window": 33},
    "segments of one row": {"segment": 1, "sample_stride": 1, "rows": 1, "window": 3},
    "coverage low": {"coverage": 0.5},
    "coverage high": {"coverage": 0.999},
    "window of one": {"window": 1},
    "window beyond the prompt": {"window": 5000},
    "sampled rows rank": {"ranking": SampledRows()},
    "pool is the segment": {"rows": 64},
    "every row sampled": {"sample_stride": 1},
    "one row sampled": {"sample_stride": 64},
    "held out": {"held_out_rows": 5},
    "dense prefix on a segment": {"dense_prefix": 128},
    "dense prefix within a segment": {"dense_prefix": 130},
    "dense tail": {"dense_tail": 70},
    "dense above little": {"dense_above": 0.05},
    "dense above by the ranks' own estimate": {
        "dense_above": 0.4, "coverage": 0.99, "rows": 8, "sample_stride": 32,
    },
    "dense above all": {"dense_above": 1.0, "coverage": 0.9999},
    "a coverage for each head": {"heads": HEADS},
}  # fmt: skip
BY_MOMENTS = {
    "moments": {"sampled_keys": 16},
    "moments, more sampled keys": {"sampled_keys": 32, "coverage": 0.8},
    "moments, every column": {},
    "moments, segments of 16": {
        "segment": 16,
        "sample_stride": 4,
        "window": 16,
        "sampled_keys": 16,
    },
    "moments, segments of 100": {
        "segment": 100,
        "sample_stride": 10,
        "window": 33,
        "sampled_keys": 17,
    },
    "moments, segments of 128": {
        "segment": 128,
        "sample_stride": 2,
        "window": 128,
        "sampled_keys": 16,
    },
    "moments, segments of one row": {
        "segment": 1,
        "sample_stride": 1,
        "window": 1,
        "sampled_keys": 16,
    },
    "moments, coverage low": {"coverage": 0.5, "sampled_keys": 16},
    "moments, coverage high": {"coverage": 0.9999, "dense_above": 1.0, "sampled_keys": 16},
    "moments, window beyond the prompt": {"window": 5000, "sampled_keys": 16},
    "moments, one row sampled": {"sample_stride": 64, "sampled_keys": 16},
    "moments, held out": {"held_out_rows": 5, "sampled_keys": 16},
    "moments, dense prefix and tail": {"dense_prefix": 130, "dense_tail": 30, "sampled_keys": 16},
    "moments, dense above little": {"dense_above": 0.05, "sampled_keys": 16},
    "moments, a coverage for each head": {"heads": HEADS, "sampled_keys": 16},
    "moments, no farthest rows": {"farthest_rows": 0, "sampled_keys": 16},
    "moments, one farthest row": {"farthest_rows": 1, "sampled_keys": 16, "coverage": 0.6},
    "moments, most farthest rows": {"farthest_rows": 16, "sampled_keys": 16, "coverage": 0.6},
    "moments, nothing but peaks": {"coverage": 1e-6, "sampled_keys": 16, "farthest_rows": 3},
}


PAPER = {
    "paper": {},
    "paper, rows strided by 1": {"sample_stride": 1},
    "paper, rows strided by 7": {"sample_stride": 7, "dense_tail": 0},
    "paper, no row sampled": {"sample_stride": 2000},
    "paper, coverage low": {"coverage": 0.3, "dense_tail": 1},
    "paper, window over all": {"window_ratio": 1.0},
    "paper, window of one key": {"window_ratio": 1e-6},
}  # fmt: skip
MLSYS = {
    "mlsys": {},
    "mlsys, coverage low": {"coverage": 0.4, "slash_coverage": 0.3},
    "mlsys, columns only": {"coverage": 0.7, "slash_coverage": 0.01},
    "mlsys, slashes only": {"coverage": 0.01, "slash_coverage": 0.7},
    "mlsys, small blocks": {"key_block": 16, "coverage": 0.5, "slash_coverage": 0.5},
    "mlsys, one chunk": {"chunks": 1, "key_block": 32, "coverage": 0.6, "slash_coverage": 0.6},
    "mlsys, five chunks": {"chunks": 5, "key_block": 32, "coverage": 0.5},
    "mlsys, more chunks than rows": {"chunks": 500, "key_block": 64, "coverage": 0.5},
}
EVERY = (
    {name: with_fields(POOLED, **fields) for name, fields in CONFIGS.items()}
    | {name: with_fields(MOMENTS, **fields) for name, fields in BY_MOMENTS.items()}
    | {name: preset("paper", **fields) for name, fields in PAPER.items()}
    | {name: preset("mlsys", **fields) for name, fields in MLSYS.items()}
)
FEW = ["segments of 64", "moments", "paper", "mlsys, small blocks"]


def reference_masks(q, k, config, scale=None):
    return reference.select(q.double(), k.double(), config, scale)


def assert_same(given, expected):
    differ = (given != expected).nonzero()
    assert not len(differ), (
        f"{len(differ)} pairs differ, {int((given & ~expected).sum())} kept in excess; "
        f"first at (head, row, key) {differ[0].tolist()}"
    )


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_equals_the_reference(select, lengths, name):
    q, k, _ = make_qkv(*LENGTHS[lengths], num_kv_heads=1, head_dim=16, dtype=torch.float64, seed=3)
    plan = select(q, k, EVERY[name])
    assert_same(plan_masks(plan), reference_masks(q[0], k[0], EVERY[name]))


def test_configurations_select():
    """The cases above are not all dense, nor all equal."""
    q, k, _ = make_qkv(300, num_kv_heads=1, head_dim=16, dtype=torch.float64, seed=3)
    kept = {name: int(reference_masks(q[0], k[0], config).sum()) for name, config in EVERY.items()}
    every = 2 * 300 * 301 // 2
    assert sum(pairs < every * 0.9 for pairs in kept.values()) > len(kept) / 2
    assert len(set(kept.values())) > len(kept) / 2


@pytest.mark.parametrize("name", ["default", "fast", "pooled", "paper", "mlsys"])
def test_presets_as_they_are(select, name):
    q, k, _ = make_qkv(1400, num_heads=1, head_dim=16, dtype=torch.float64)
    config = preset(name)
    masks = plan_masks(select(q, k, name))
    assert_same(masks, reference_masks(q[0], k[0], config))
    assert masks.sum() < 1400 * 1401 // 2


@pytest.mark.parametrize("name", FEW)
def test_scale(select, name):
    q, k, _ = make_qkv(200, head_dim=16, dtype=torch.float64)
    masks = plan_masks(select(q, k, EVERY[name], scale=0.4))
    assert_same(masks, reference_masks(q[0], k[0], EVERY[name], 0.4))
    assert not torch.equal(masks, reference_masks(q[0], k[0], EVERY[name]))


@pytest.mark.parametrize("name", FEW)
def test_groups_strides_and_batches(select, name):
    q, k, _ = make_qkv(150, 290, batch=2, num_heads=6, num_kv_heads=2, dtype=torch.float64)
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    plan = select(q, k, EVERY[name])
    for b in range(2):
        assert_same(plan_masks(plan, b), reference_masks(q[b], k[b], EVERY[name]))


@pytest.mark.parametrize("name", FEW)
def test_padded_and_packed(select, name):
    q, k, _ = make_qkv(200, 300, batch=3, dtype=torch.float64)
    padded = Sequences.left_padded(torch.tensor([300, 171, 90]), 200, 300)
    flat_q, flat_k = (x[0].transpose(0, 1) for x in (q, k))
    ends = torch.tensor([0, 130, 131, 200]), torch.tensor([0, 190, 220, 300])
    packed = Sequences.packed_from(*ends)
    for sequences, qs, ks in ((padded, q, k), (packed, flat_q, flat_k)):
        plan = select(qs, ks, EVERY[name], sequences=sequences)
        queries, keys = split_sequences(qs, sequences), split_sequences(ks, sequences, keys=True)
        for n, (qn, kn) in enumerate(zip(queries, keys, strict=True)):
            assert_same(plan_masks(plan, n), reference_masks(qn, kn, EVERY[name]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "segments of 16", "segments of 64", "segments of 256", "sampled rows rank",
        "moments, every column",
    ],
)  # fmt: skip
def test_single_precision_differs_by_rounding_only(select, name, dtype):
    """Where the masks differ, the columns' ranks lie within one class of each other."""
    config = EVERY[name]
    q, k, _ = make_qkv(500, num_heads=2, dtype=dtype)
    plan = select(q, k, config)
    given, expected = plan_masks(plan), reference_masks(q[0], k[0], config)
    p = torch.arange(500)
    rounding = 500 * torch.finfo(torch.float32).eps
    one_class = 1 + 1 / 8 + rounding
    for h, g in (given != expected).any(-1).nonzero().tolist():
        rows = p // config.segment == g // config.segment
        ranks = column_ranks(q[0, h].double(), k[0, h].double(), rows, config)
        columns = (given[h] != expected[h])[rows].any(0)
        dense = (
            given[h, rows].equal(expected[h, rows].tril()) or plan.dense[0, h, g // config.segment]
        )
        assert dense or ranks[columns].max() <= ranks[columns].min() * one_class
    sampled = p % config.sample_stride == config.sample_stride // 2
    mass = reference.retained_mass(q[0].double(), k[0].double(), given)[:, sampled]
    per_segment = mass[:, : 500 // config.segment * config.segment // config.sample_stride]
    means = per_segment.unflatten(1, (-1, config.segment // config.sample_stride)).mean(-1)
    assert (means >= config.coverage - rounding).all()


def column_ranks(q, k, rows, config):
    """What the reference ranks columns by, for the rows of one segment."""
    p = torch.arange(len(q))[:, None]
    j = torch.arange(len(k))[None]
    align = min(config.segment, 128)
    outside = (j <= p // align * align - config.window)[rows]
    if isinstance(config.ranking, QueryMoments):
        return torch.exp(reference.rank_exponent(q[rows], k, int(outside[0].sum()))) * outside[0]
    if isinstance(config.ranking, SampledRows):
        prob = reference.probabilities(q[None], k[None])[0, rows] * outside
        return prob[(p[rows] % config.sample_stride == config.sample_stride // 2)[:, 0]].mean(0)
    return default._pooled_rank(q[rows], k, p[rows], outside, config.ranking.rows, None)


DENSE = {
    "default": SampleAttentionConfig(coverage=1),
    "pooled": preset("pooled", coverage=1),
    "segments without pools": preset(
        "pooled", coverage=1.0, ranking=SampledRows(), dense_prefix=0, dense_tail=0
    ),
    "paper": preset("paper", coverage=1),
    "mlsys": preset("mlsys", coverage=1, slash_coverage=1),
}


@pytest.mark.parametrize("name", DENSE)
def test_coverage_of_one_is_dense(select, attend, name):
    q, k, v = make_qkv(250, 300, num_heads=4, num_kv_heads=2, dtype=torch.float64)
    plan = select(q, k, DENSE[name])
    assert (plan.density() == 1).all()
    bottom_right = torch.ones(250, 300, dtype=torch.bool).tril(50)
    peer = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bottom_right, enable_gqa=True
    )
    torch.testing.assert_close(attend(q, k, v, plan).out, peer)


@pytest.mark.parametrize("name", [*FEW, "held out", "moments, held out"])
def test_memory_beyond_the_sequences_is_not_read(select, name):
    q, k, _ = make_qkv(200, 300, dtype=torch.float64)
    sequences = Sequences.left_padded(torch.tensor([180]), 200, 300)
    plan = select(q, k, EVERY[name], sequences=sequences)
    q, k = q.clone(), k.clone()
    q[:, :, :20], k[:, :, :120] = torch.nan, torch.nan
    again = select(q, k, EVERY[name], sequences=sequences)
    assert torch.equal(plan.indices, again.indices)
    assert torch.equal(plan.dense, again.dense)


@pytest.mark.parametrize("name", EVERY)
def test_lists_are_sorted_unique_and_causal(select, name):
    q, k, _ = make_qkv(173, 310)
    plan = select(q, k, EVERY[name])
    assert plan.indices.dtype == torch.int32
    assert int(plan.counts.sum()) == len(plan.indices)
    problem = Problem.of(q, k, k)
    plan.check_covers(problem)
    for h in range(2):
        for g in range(plan.counts.shape[2]):
            columns = plan.columns(0, h, g)
            assert (columns.diff() > 0).all()
            assert not len(columns) or 0 <= int(columns[0]) <= int(columns[-1]) < 310
            assert not (plan.dense[0, h, g] and len(columns))
