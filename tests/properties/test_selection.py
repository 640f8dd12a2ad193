"""What holds for every selection, found out with the probabilities of the reference."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_attention import PooledQueries, QueryMoments, SampledRows, preset, reference
from sample_attention.config import BINS_PER_OCTAVE, LOWEST_OCTAVE
from sample_attention.reference import default, paper
from sample_attention.selection.bins import NUM_BINS, rank_bins
from sample_attention.selection.eager.lists import smallest_bins, smallest_set
from sample_attention.testing import make_qkv, plan_masks

ROUNDING = 1000 * torch.finfo(torch.float64).eps
SHARES = st.floats(0.05, 0.9999)


@st.composite
def problems(draw):
    kv_len = draw(st.integers(1, 330))
    q_len = draw(st.integers(1, kv_len))
    return make_qkv(
        q_len, kv_len, num_heads=2, num_kv_heads=draw(st.sampled_from([1, 2])), head_dim=16,
        dtype=torch.float64, seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def pooled(rows):
    return PooledQueries(rows=rows)


@st.composite
def segment_configs(draw, *, every_key=False, **fixed):
    segment = draw(st.sampled_from([16, 32, 64, 96, 128, 256]))
    fields = {
        "segment": segment,
        "coverage": draw(SHARES),
        "sample_stride": draw(st.sampled_from([1, 4, 8, 16])),
        "ranking": draw(st.sampled_from([SampledRows(), *map(pooled, (8, 16))])),
        "window": draw(st.integers(1, 80)),
        "dense_above": draw(st.sampled_from([0.3, 0.75, 1.0])),
        "dense_prefix": draw(st.sampled_from([0, 64])),
    }
    if segment <= 128 and draw(st.booleans()):
        keys = None if every_key else draw(st.sampled_from([None, 16, 32]))
        fields["ranking"] = QueryMoments(sampled_keys=keys, farthest_rows=0)
    return preset("pooled", **{**fields, **fixed})


def sampled_rows(q, k, config):
    p = torch.arange(k.shape[2] - q.shape[2], k.shape[2])
    return p, p % config.sample_stride == config.sample_stride // 2


def window_mask(p, kv_len, config):
    j, align = torch.arange(kv_len), min(config.segment, 128)
    return (j <= p[:, None]) & (j > p[:, None] // align * align - config.window)


@given(problems(), segment_configs(every_key=True))
def test_threshold_is_met_on_the_sampled_rows(select, qkv, config):
    q, k, _ = qkv
    plan = select(q, k, config)
    p, sampled = sampled_rows(q, k, config)
    prob = reference.probabilities(q[0], k[0])
    for h, mask in enumerate(plan_masks(plan)):
        for segment in (p // config.segment).unique():
            rows = sampled & (p // config.segment == segment)
            if not rows.any():
                assert (
                    mask[p // config.segment == segment]
                    .sum(-1)
                    .equal(p[p // config.segment == segment] + 1)
                )
                continue
            kept = (prob[h] * mask)[rows].sum(-1).mean()
            assert kept >= config.coverage - ROUNDING


@given(
    problems(),
    segment_configs(ranking=SampledRows(), dense_above=1.0, dense_prefix=0, dense_tail=0),
)
def test_set_is_smallest_by_bin(select, qkv, config):
    """Without the columns of the lowest kept bin the threshold is missed."""
    q, k, _ = qkv
    plan = select(q, k, config)
    p, sampled = sampled_rows(q, k, config)
    outside = ~window_mask(p, k.shape[2], config) & (torch.arange(k.shape[2]) <= p[:, None])
    prob = reference.probabilities(q[0], k[0]) * outside
    for h in range(2):
        for g, segment in enumerate((p // config.segment).unique()):
            columns = plan.columns(0, h, g).long()
            rows = sampled & (p // config.segment == segment)
            if plan.dense[0, h, g] or not len(columns):
                continue
            mass = prob[h, rows].mean(0)
            need = config.coverage - 1 + mass.sum()
            bins = rank_bins(mass.float())[columns]
            above = mass[columns][bins > bins.min()].sum()
            assert above < need + ROUNDING


@given(problems(), SHARES, st.integers(1, 9), st.floats(0.02, 0.4))
def test_paper_keeps_the_smallest_set(select, qkv, coverage, sample_stride, window_ratio):
    q, k, _ = qkv
    config = preset(
        "paper", coverage=coverage, sample_stride=sample_stride,
        window_ratio=window_ratio, dense_tail=0,
    )  # fmt: skip
    plan = select(q, k, config)
    _, sampled = sampled_rows(q, k, config)
    if not sampled.any():
        assert plan.dense.all()
        return
    prob = reference.probabilities(q[0], k[0])
    for h, mass in enumerate(prob[:, sampled].mean(1)):
        columns = plan.columns(0, h, 0).long()
        need = coverage * mass.sum()
        assert mass[columns].sum() >= need - ROUNDING
        if len(columns):
            assert mass[columns].sum() - mass[columns].min() < need + ROUNDING
            others = mass.index_fill(0, columns, 0.0)
            assert mass[columns].min() >= others.max()


@given(problems(), SHARES, SHARES, st.sampled_from([8, 16, 64]), st.integers(1, 4))
def test_mlsys_keeps_each_share_of_each_chunk(select, qkv, coverage, slash, block, chunks):
    q, k, _ = qkv
    config = preset(
        "mlsys", coverage=coverage, slash_coverage=slash, key_block=block, chunks=chunks
    )
    masks = plan_masks(select(q, k, config))
    prob = reference.probabilities(q[0], k[0])
    q_len = q.shape[2]
    for c in range(chunks):
        end = (c + 1) * q_len // chunks
        rows = slice(max(c * q_len // chunks, end - 128), end)
        kept = (prob * masks)[:, rows].sum((1, 2))
        share = max(coverage, slash)  # every column and every slash of the share is kept
        assert (kept >= share * prob[:, rows].sum((1, 2)) - ROUNDING).all()


@given(problems(), segment_configs(), SHARES)
def test_higher_coverage_keeps_a_superset(select, qkv, config, other):
    q, k, _ = qkv
    low, high = sorted((config.coverage, other))
    kept = [plan_masks(select(q, k, replace(config, coverage=share))) for share in (low, high)]
    assert not (kept[0] & ~kept[1]).any()


@given(problems(), segment_configs())
def test_window_and_causality(select, qkv, config):
    q, k, _ = qkv
    masks = plan_masks(select(q, k, config))
    p = torch.arange(k.shape[2] - q.shape[2], k.shape[2])
    assert not (masks & (torch.arange(k.shape[2]) > p[:, None])).any()
    assert (masks | ~window_mask(p, k.shape[2], config)).all()


@given(problems(), segment_configs(held_out_rows=3))
def test_density_counts_the_pairs(select, qkv, config):
    q, k, _ = qkv
    plan = select(q, k, config)
    p = torch.arange(k.shape[2] - q.shape[2], k.shape[2])
    expected = plan_masks(plan).sum((1, 2)).double() / (p + 1).sum()
    assert torch.equal(plan.density()[0], expected)


@given(problems(), segment_configs(held_out_rows=3))
def test_retained_mass_is_that_of_the_reference(select, attend, qkv, config):
    q, k, v = qkv
    plan = select(q, k, config)
    measured = plan.retained_mass(attend(q, k, v, plan).lse)[0]
    expected = reference.retained_mass(q[0], k[0], plan_masks(plan))
    rows = plan.held_out.rows[0].long()
    held = rows >= 0
    torch.testing.assert_close(measured[:, held], expected[:, rows[held]])
    assert measured[:, ~held].isnan().all()
    assert measured.shape == (2, *rows.shape)


@given(problems(), segment_configs(held_out_rows=3))
def test_held_out_rows_took_no_part(select, qkv, config):
    q, k, _ = qkv
    offset = k.shape[2] - q.shape[2]
    rows = select(q, k, config).held_out.rows[0].long()
    p = rows[rows >= 0] + offset
    assert len(p.unique()) == len(p)
    sampled = p % config.sample_stride == config.sample_stride // 2
    for segment in (p[sampled] // config.segment).unique():  # only where there is no other row
        assert sampled[p // config.segment == segment].all()


@given(problems(), segment_configs())
def test_error_is_bounded_by_the_mass_dropped(select, attend, qkv, config):
    """|out - dense|_inf <= 2 (1 - c) max |v| for a row whose retained mass is c."""
    q, k, v = qkv
    plan = select(q, k, config)
    causal = plan_masks(plan.with_dense(torch.ones(1, 2, dtype=torch.bool)))
    dense, _ = reference.attend(q[0], k[0], v[0], causal)
    dropped = 1 - reference.retained_mass(q[0], k[0], plan_masks(plan))
    error = (attend(q, k, v, plan).out[0] - dense).abs().amax(-1)
    largest = v[0].abs().amax((1, 2)).repeat_interleave(2 // len(v[0]))[:, None]
    assert (error <= (2 * dropped + ROUNDING) * largest).all()


MASSES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40)


@given(MASSES, st.floats(-0.5, 1.2))
def test_smallest_set_equals_the_reference(masses, share):
    mass = torch.tensor(masses, dtype=torch.float64)
    need = share * mass.sum()
    keep = smallest_set(mass[None], need[None])[0]
    assert torch.equal(keep, paper.fewest_holding(mass, need))
    if 0 < share < 1 and mass.sum() > 0:
        assert mass[keep].sum() >= need - ROUNDING
        assert mass[keep].sum() - mass[keep].min() < need


@given(MASSES, st.randoms(use_true_random=False), st.floats(-0.5, 1.2))
def test_smallest_bins_equal_the_reference(masses, random, share):
    """Any mass, ranked by something else."""
    mass = torch.tensor(masses, dtype=torch.float64)
    rank = torch.tensor(random.sample(masses, len(masses)), dtype=torch.float64)
    need = share * mass.sum()
    bins = rank_bins(rank.float()[None])
    keep = bins[0] >= smallest_bins(bins, mass[None], need[None])
    expected = default._smallest_bins(default._bin(rank), mass, float(need))
    assert torch.equal(mass[keep], mass[keep & expected])
    assert torch.equal(mass[expected], mass[keep & expected])


def test_nothing_needed_keeps_nothing():
    mass = torch.tensor([[0.5, 0.25, 0.0]])
    for need in (torch.tensor([0.0]), torch.tensor([-1.0])):
        assert smallest_bins(rank_bins(mass.clone()), mass, need).tolist() == [NUM_BINS]
        assert not smallest_set(mass, need).any()


@settings(max_examples=100)
@given(st.floats(0, 1, width=32))
def test_classes_equal_the_reference(rank):
    x = torch.tensor([rank], dtype=torch.float32)
    lowest, highest = LOWEST_OCTAVE * BINS_PER_OCTAVE, 0
    assert int(rank_bins(x.clone())) == int(default._bin(x)) - lowest
    assert 0 <= int(rank_bins(x.clone())) <= highest - lowest == NUM_BINS - 1


@given(st.floats(2**-30, 1, width=32), st.floats(2**-30, 1, width=32))
def test_classes_keep_the_order_of_ranks(a, b):
    low, high = rank_bins(torch.tensor(sorted((a, b)), dtype=torch.float32)).tolist()
    assert low <= high
    assert low < high or max(a, b) <= min(a, b) * (1 + 1 / 8)


@pytest.mark.parametrize("config", ["default", "fast", "pooled", "paper", "mlsys"])
def test_selection_is_repeatable(select, config):
    q, k, _ = make_qkv(1300, num_heads=1)
    first, second = select(q, k, config), select(q, k, config)
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.counts, second.counts)
    assert torch.equal(first.dense, second.dense)
