"""Retained mass against the specification, in fp64."""

import pytest
import torch

import sample_attention as sa
from sample_attention import reference
from sample_attention.config import with_fields
from sample_attention.errors import InvalidInput, PlanMismatch
from sample_attention.lab.analysis import measure_retained_mass, probabilities, sample_rows

CONFIG = sa.preset(
    "pooled", coverage=0.8, segment=32, sample_stride=8, rows=16, window=16, dense_prefix=32,
    dense_tail=5,
)  # fmt: skip


def peaked(*shape):
    return 3 * torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def problem():
    """Two sequences with a cached prefix; four heads share two."""
    return peaked(2, 4, 150, 16), peaked(2, 2, 200, 16)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("pairs", [2**23, 1, 700])
def test_equals_the_specification_whatever_the_chunk(problem, n, pairs, monkeypatch):
    monkeypatch.setattr(probabilities, "CHUNK_PAIRS", pairs)
    q, k = problem
    plan = sa.select(q, k, CONFIG, scale=0.3)
    found = measure_retained_mass(q, k, plan, n=n, scale=0.3, num_rows=150)
    mask = torch.stack([plan.to_dense(n, h) for h in range(4)])
    expected = reference.retained_mass(q[n], k[n], mask, scale=0.3)
    assert torch.equal(found.rows, torch.arange(150))
    torch.testing.assert_close(found.mass, expected)
    torch.testing.assert_close(found.cra, expected.min(-1).values)
    torch.testing.assert_close(found.mean, expected.mean(-1))
    torch.testing.assert_close(found.p5, expected.quantile(0.05, -1))


def test_packed_sequences(problem):
    q, k = (x[0, :, -150:] for x in problem)
    cu = torch.tensor([0, 60, 150], dtype=torch.int32)
    packed = sa.Sequences.packed_from(cu)
    q, k = q.transpose(0, 1).contiguous(), k.transpose(0, 1).contiguous()
    plan = sa.select(q, k, CONFIG, sequences=packed)
    rows = torch.tensor([0, 40, 89])
    found = measure_retained_mass(q, k, plan, n=1, rows=rows)
    mask = torch.stack([plan.to_dense(1, h) for h in range(4)])
    parts = (x[60:150].transpose(0, 1) for x in (q, k))
    torch.testing.assert_close(found.mass, reference.retained_mass(*parts, mask)[:, rows])


def test_agrees_with_the_lse_of_attend(problem):
    """The held-out measurement of the package, made another way."""
    q, k = problem
    plan = sa.select(q, k, with_fields(CONFIG, held_out_rows=2))
    mass = plan.retained_mass(sa.attend(q, k, k, plan).lse)
    for g, probed in enumerate(plan.held_out.rows[0].long()):
        rows = probed[probed >= 0]
        found = measure_retained_mass(q, k, plan, rows=rows)
        torch.testing.assert_close(mass[0, :, g, : len(rows)].double(), found.mass)


def test_random_rows_are_repeatable_distinct_and_in_range():
    rows = sample_rows(1000, 64, seed=3)
    assert torch.equal(rows, sample_rows(1000, 64, seed=3))
    assert not torch.equal(rows, sample_rows(1000, 64, seed=4))
    assert len(rows.unique()) == 64
    assert 0 <= int(rows.min()) <= int(rows.max()) < 1000
    assert torch.equal(sample_rows(5, 64), torch.arange(5))


@pytest.mark.parametrize("rows", [[-1], [150], [], [[1]], [0.5]])
def test_bad_rows_are_refused(problem, rows):
    plan = sa.select(*problem, CONFIG)
    with pytest.raises(InvalidInput, match="rows"):
        measure_retained_mass(*problem, plan, rows=torch.tensor(rows))


def test_no_rows_are_refused():
    with pytest.raises(InvalidInput, match="num_rows"):
        sample_rows(5, 0)


def test_a_plan_of_other_tensors_is_refused(problem):
    q, k = problem
    plan = sa.select(q, k, CONFIG)
    with pytest.raises(PlanMismatch):
        measure_retained_mass(q[:, :2], k, plan)
