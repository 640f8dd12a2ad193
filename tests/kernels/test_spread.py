"""The rule by mean and spread: few pairs are scored, and what they say is close to all of them."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import sample_attention as sa
from sample_attention import preset, reference
from sample_attention.config import BINS_PER_OCTAVE, MOST_HEAVY, with_fields
from sample_attention.plan import segment_starts
from sample_attention.selection.rows import strided_rows
from sample_attention.selection.sampled_keys import key_step
from sample_attention.testing import make_qkv, plan_masks


@pytest.mark.parametrize("probes", [16, 17, 500])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 32, 33, 499, 1024, 100_000])
def test_step_is_the_smallest_power_of_two_that_leaves_few_enough(columns, probes):
    step = key_step(columns, probes)
    assert step & (step - 1) == 0
    assert step * probes >= columns
    assert step == 1 or step // 2 * probes < columns
    assert key_step(columns, None) == 1


RULE = preset(
    "default",
    dense_prefix=0,
    dense_tail=0,
    window=64,
    coverage=0.9,
    tighten_below=None,
    run_share=None,
)


def test_few_probes_say_what_all_columns_say():
    """Kept mass of the sampled rows: no bias beyond chance, and errors less than what is dropped.

    Chance is three standard errors of the mean over segments, whose probes are different columns.
    """
    q, k, _ = make_qkv(3000, num_heads=4, num_kv_heads=2, head_dim=16, dtype=torch.float64)
    q *= 0.7  # less peaked: light columns count as well
    prob = reference.probabilities(q[0], k[0])
    kept, densities = [], []
    for probes in (64, None):
        plan = sa.select(q, k, with_fields(RULE, sampled_keys=probes), backend="eager")
        mass = (prob * plan_masks(plan)).sum(-1)
        rows = [strided_rows(lo, hi, RULE.sample_stride) for lo, hi in segment_starts(0, 3000, 128)]
        kept.append(torch.stack([mass[:, at].mean(1) for at in rows[1:]]))
        densities.append(plan.density().mean())
    assert max(densities) < 1 / 2
    error = kept[0] - kept[1]
    assert error.std() > 0
    assert abs(error.mean()) < 3 * error.std() / error.numel() ** 0.5
    assert error.square().mean().sqrt() < 1 - RULE.coverage


@pytest.mark.parametrize("kv_len", [2048, 8192])
def test_exact_rows_score_their_window_and_probes_only(kv_len):
    """Operations of all products, counted: outliers and two rows of a segment see all columns."""
    config = with_fields(RULE, sampled_keys=32, coverage=0.3)  # all columns alike: few enough
    q, k, _ = (x / 100 for x in make_qkv(256, kv_len, num_heads=4, num_kv_heads=2))
    assert kv_len - 256 - config.window > MOST_HEAVY  # of as many even ranks none is heavy
    with FlopCounterMode(display=False) as counter:
        plan = sa.select(q, k, config, backend="eager")
    assert not plan.dense.any()
    sampled, ranking = 128 // config.sample_stride, config.ranking
    of_segment = (2 + ranking.farthest_rows) * kv_len
    of_segment += sampled * (ranking.sampled_keys + config.window + 128)
    pairs = counter.get_total_flops() / (2 * q.shape[-1])
    assert pairs <= 4 * 2 * of_segment
    assert of_segment < sampled * kv_len / 2


def test_what_moves_all_scores_of_a_row_alike_changes_nothing():
    """As in a softmax, whatever the variance of the queries along it; but for where bins end."""
    config = with_fields(RULE, dense_prefix=256)
    q, k, _ = make_qkv(1500, num_heads=4, num_kv_heads=2, head_dim=16, dtype=torch.float64)
    shifted = k + 5 * torch.randn(1, 2, 1, 16, dtype=torch.float64)
    plan, again = (sa.select(q, x, config, backend="eager") for x in (k, shifted))
    assert torch.equal(plan_masks(again), reference.select(q[0], shifted[0], config))
    assert plan.density().mean() < 1 / 4
    changed = (plan_masks(plan) != plan_masks(again)).sum() / plan_masks(plan).sum()
    assert changed < 1 / BINS_PER_OCTAVE / 8


def test_too_many_heavy_columns_are_dense():
    """The regular probes are weak, so that they tell too small a sum, and all others are heavy."""
    config = with_fields(RULE, sampled_keys=16, coverage=0.3)
    torch.manual_seed(1)
    q = torch.ones(1, 1, 128, 16, dtype=torch.float64)
    k = torch.rand(1, 1, 2 * MOST_HEAVY + 800, 16, dtype=torch.float64)
    step = key_step(k.shape[2] - 128 - config.window + 1, config.ranking.sampled_keys)
    k[:, :, step - 1 :: step] = -10
    plan = sa.select(q, k, config, backend="eager")
    assert plan.dense.all()
    assert torch.equal(plan_masks(plan), reference.select(q[0], k[0], config))
    assert not sa.select(q, k, with_fields(config, sampled_keys=None), backend="eager").dense.any()


@pytest.mark.parametrize("size", [1e15, 1e25])
def test_ranks_that_overflow_are_dense(size):
    q, k, _ = make_qkv(300)
    plan = sa.select(q * size, k * size, RULE, backend="eager")
    assert plan.dense[:, :, 1:].all()


PEAKS_ONLY = with_fields(RULE, coverage=1e-6)


def one_row_looks_far_back(*, rows, strength):
    """Sampled rows of the last segment look for a key of their own, 100 apart, beside noise."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1024, 64).double(), torch.randn(1, 1, 1024, 64).double()
    for i, size in enumerate(strength):
        target = torch.nn.functional.one_hot(torch.tensor(i), 64).double()
        q[0, 0, rows[i]] += 12 * size * target
        k[0, 0, 100 * (i + 1)] += 12 * target
    return q, k


@pytest.mark.parametrize("outliers", [0, 1, 2, 4])
def test_what_a_single_row_needs_is_kept(select, outliers):
    """The farthest row comes first. The coverage asks for next to nothing."""
    q, k = one_row_looks_far_back(rows=(902, 946), strength=(1.0, 1.2))
    kept = select(q, k, with_fields(PEAKS_ONLY, farthest_rows=outliers)).columns(0, 0, 7).tolist()
    assert (200 in kept) == (outliers >= 1)
    assert (100 in kept) == (outliers >= 2)


def test_rows_that_are_not_sampled_are_no_outliers(select):
    q, k = one_row_looks_far_back(rows=(901,), strength=(1.0,))
    assert 100 not in select(q, k, PEAKS_ONLY).columns(0, 0, 7).tolist()


def test_outliers_that_are_alike_count_once(select):
    """A second row farther away than all others, but next to the first, leaves room for a third."""
    q, k = one_row_looks_far_back(rows=(902, 946, 906), strength=(1.0, 1.2, 1.1))
    q[0, 0, 950] = q[0, 0, 946]
    kept = select(q, k, with_fields(PEAKS_ONLY, farthest_rows=2)).columns(0, 0, 7).tolist()
    assert 200 in kept
    assert 300 in kept


def test_runs_keep_what_lies_next_to_a_high_peak(select):
    """Of the block of 16 that holds key 200 and those beside it; half of the mass is enough."""
    q, k = one_row_looks_far_back(rows=(902,), strength=(1.0,))
    k[0, 0, 200] = k[0, 0, 100]
    k[0, 0, 100] = 0
    alone = set(select(q, k, PEAKS_ONLY).columns(0, 0, 7).tolist())
    runs = set(select(q, k, with_fields(PEAKS_ONLY, run_share=0.5)).columns(0, 0, 7).tolist())
    assert 200 in alone
    assert runs - alone == set(range(176, 224)) - alone
    assert select(q, k, with_fields(PEAKS_ONLY, run_share=1.0)).columns(0, 0, 7).tolist() == sorted(
        alone
    )


def test_the_first_block_is_no_run(select):
    q, k = one_row_looks_far_back(rows=(902,), strength=(1.0,))
    k[0, 0, 5] = k[0, 0, 100]
    k[0, 0, 100] = 0
    alone, runs = (
        select(q, k, with_fields(PEAKS_ONLY, run_share=r)).columns(0, 0, 7) for r in (None, 0.5)
    )
    assert 5 in alone.tolist()
    assert torch.equal(alone, runs)


@pytest.mark.parametrize("name", ["default", "pooled"])
def test_few_columns_lose_the_square_root_of_their_share(select, name):
    """With a quarter of `tighten_below` to choose from a segment may lose half as much."""
    of_all = {
        "dense_prefix": 0,
        "dense_tail": 0,
        "window": 64,
        "dense_above": 1.0,
    }
    of_all |= {"run_share": None} if name == "default" else {}
    config = preset(name, **of_all, coverage=0.6, tighten_below=None)
    q, k, _ = make_qkv(1024, num_heads=2, num_kv_heads=1, head_dim=16, dtype=torch.float64)
    columns = 7 * 128 - 64 + 1
    by_share = select(q, k, with_fields(config, tighten_below=4 * columns))
    half = select(q, k, replace(config, coverage=0.8))
    assert len(half.columns(0, 0, 7)) > len(select(q, k, config).columns(0, 0, 7))
    assert torch.equal(by_share.columns(0, 0, 7), half.columns(0, 0, 7))
    fewer = replace(config, coverage=1 - 0.4 * math.sqrt((3 * 128 - 64 + 1) / (4 * columns)))
    assert torch.equal(by_share.columns(0, 0, 3), select(q, k, fewer).columns(0, 0, 3))
