"""The assertion that every other test trusts must itself object, and say what is wrong."""

import re

import pytest
import torch

import sample_attention as sa
from sample_attention import Sequences, preset
from sample_attention.testing import (
    assert_matches_oracle,
    make_plan,
    make_qkv,
    nan_poison,
    plan_masks,
)

CONFIG = preset(
    "pooled",
    dense_prefix=0,
    dense_tail=0,
    segment=32,
    sample_stride=8,
    rows=8,
    window=8,
    coverage=0.7,
)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=str)
def result(request):
    q, k, v = make_qkv(130, 150, num_heads=4, num_kv_heads=2, dtype=request.param)
    plan = sa.select(q, k, CONFIG)
    return *sa.attend(q, k, v, plan), q, k, v, plan


def test_right_results_pass(result):
    assert_matches_oracle(*result)
    assert_matches_oracle(result[0], None, *result[2:])


def test_noise_of_the_dtype_is_seen(result):
    out, lse, *rest = result
    steps = 10_000 if out.dtype == torch.float64 else 100  # the fp64 oracle rounds as much
    noise = torch.randn_like(out) * out * torch.finfo(out.dtype).eps * steps
    with pytest.raises(AssertionError, match=r"sequence 0: out: \w+ error .* > budget .* = 2 \* "):
        assert_matches_oracle(out + noise, lse, *rest)


def test_one_wrong_value_is_seen(result):
    out, lse, *rest = result
    out = out.clone()
    out[0, 2, 77, 5] += 1
    with pytest.raises(AssertionError, match=re.escape("worst at (2, 77, 5)")):
        assert_matches_oracle(out, lse, *rest)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_no_numbers_are_seen(result, value):
    out, lse, *rest = result
    out = out.clone()
    out[0, 0, 3, 0] = value
    with pytest.raises(AssertionError, match=r"out: largest error (nan|inf)"):
        assert_matches_oracle(out, lse, *rest)


def test_a_wrong_lse_is_seen(result):
    out, lse, *rest = result
    for wrong in (lse + 0.01, lse / torch.log(torch.tensor(2.0)), lse * 0):
        with pytest.raises(AssertionError, match="lse"):
            assert_matches_oracle(out, wrong, *rest)
    lse = lse.clone()
    lse[0, 0, 0] = -torch.inf
    with pytest.raises(AssertionError, match="lse is not -inf exactly"):
        assert_matches_oracle(out, lse, *rest)


def test_another_plan_is_seen(result):
    out, lse, q, k, v, plan = result
    other = sa.select(q, k, preset("default", coverage=1))
    with pytest.raises(AssertionError, match="out"):
        assert_matches_oracle(out, lse, q, k, v, other)
    dense = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.ones(130, 150, dtype=torch.bool).tril(20), enable_gqa=True
    )
    with pytest.raises(AssertionError, match="out"):
        assert_matches_oracle(dense, None, q, k, v, plan)


def test_one_key_too_few_is_seen():
    q, k, v = make_qkv(64, num_heads=1)
    sequences = sa.select(q, k).sequences
    plan, fewer = (
        make_plan(sequences, [[[columns, columns]]], segment=32, window=4)
        for columns in ([0, 5, 9], [0, 5])
    )
    out, lse = sa.attend(q, k, v, fewer)
    with pytest.raises(AssertionError, match=r"out|lse"):
        assert_matches_oracle(out, lse, q, k, v, plan)


def test_shape_and_dtype_are_checked(result):
    out, lse, *rest = result
    with pytest.raises(AssertionError, match="out is"):
        assert_matches_oracle(out[:, :1], lse, *rest)
    other = torch.float32 if out.dtype == torch.float64 else torch.float64
    with pytest.raises(AssertionError, match="out is"):
        assert_matches_oracle(out.to(other), lse, *rest)


def test_rows_of_padding_and_empty_rows_are_checked():
    q, k, v = make_qkv(40, batch=2)
    sequences = Sequences.left_padded(torch.tensor([40, 10]), 40, 40)
    plan = sa.select(q, k, CONFIG, sequences=sequences)
    out, lse = sa.attend(q, k, v, plan)
    assert_matches_oracle(out, lse, q, k, v, plan)
    wrong = out.clone()
    wrong[1, 0, 3] = 1
    with pytest.raises(AssertionError, match="padding are not zeros"):
        assert_matches_oracle(wrong, lse, q, k, v, plan)
    wrong = lse.clone()
    wrong[1, 0, 3] = 0
    with pytest.raises(AssertionError, match="padding have an lse"):
        assert_matches_oracle(out, wrong, q, k, v, plan)
    empty = make_plan(sa.select(q, k).sequences, [[[[]]] * 2] * 2, segment=64, window=0)
    out, lse = sa.attend(q, k, v, empty)
    assert_matches_oracle(out, lse, q, k, v, empty)
    with pytest.raises(AssertionError, match="keep no key are not zeros"):
        assert_matches_oracle(out + 1, lse, q, k, v, empty)


def test_inputs_are_seeded_and_of_the_shape_asked_for():
    shape = {"batch": 2, "num_heads": 6, "num_kv_heads": 3, "head_dim": 5}
    q, k, v = make_qkv(7, 11, **shape, dtype=torch.bfloat16, seed=4)
    assert (q.shape, k.shape, v.shape) == ((2, 6, 7, 5), (2, 3, 11, 5), (2, 3, 11, 5))
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    again = make_qkv(7, 11, **shape, dtype=torch.bfloat16, seed=4)
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), again, strict=True))
    exact = make_qkv(7, 11, **shape, dtype=torch.float64, seed=4)
    assert all(torch.equal(x, y.bfloat16()) for x, y in zip((q, k, v), exact, strict=True))
    assert not torch.equal(make_qkv(7, 11, **shape, seed=5)[0], make_qkv(7, 11, **shape, seed=4)[0])


def test_inputs_have_structure():
    """Few keys hold most of the mass, among them the sinks; other regions use other keys."""
    q, k, _ = make_qkv(1024, num_heads=4, dtype=torch.float64)
    prob = sa.reference.probabilities(q[0], k[0])[:, 300:]
    top = prob.sort(-1, descending=True).values
    assert top[..., :100].sum(-1).mean() > 0.8
    assert prob[..., :4].sum(-1).mean() > 4 / 1024 * 10
    first, last = (prob[:, rows].mean(1) for rows in (slice(0, 200), slice(500, 700)))
    shared = torch.minimum(first[:, 4:300], last[:, 4:300]).sum(-1)
    assert (shared < first[:, 4:300].sum(-1) / 2).all()


def test_poison_fills_what_is_not_written():
    with nan_poison():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(2, dtype=torch.float16)).isnan().all()
        assert torch.ones(2).new_empty(4).isnan().all()
        assert torch.empty_strided((2, 2), (2, 1)).isnan().all()
        assert (torch.empty(2, dtype=torch.int32) == torch.iinfo(torch.int32).min).all()
        assert not torch.empty(2, dtype=torch.bool).any()
        assert torch.zeros(3).isfinite().all()
    torch.empty(3, dtype=torch.int64)


def test_plans_by_hand_sort_their_lists():
    q, k, _ = make_qkv(8)
    plan = make_plan(sa.select(q, k).sequences, [[[[3, 1, 3]], [[-1]]]], segment=8, window=1)
    assert plan.columns(0, 0, 0).tolist() == [1, 3]
    assert plan.dense[0].tolist() == [[False], [True]]
    assert plan_masks(plan).shape == (2, 8, 8)
