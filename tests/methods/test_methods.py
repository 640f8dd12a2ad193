"""What holds for every method: where it runs, its knob, and that a plan of it is attended to."""

import dataclasses

import pytest
import torch

import sample_attention as sa
from sample_attention.errors import InvalidConfig
from sample_attention.methods import METHODS, Method, XAttention, at_density
from sample_attention.problem import Problem, Sequences
from sample_attention.routing.policy import Crossover
from sample_attention.routing.route import route
from sample_attention.routing.row_spans import row_spans
from sample_attention.testing import assert_matches_oracle, make_pages, make_qkv, plan_masks

SMALL = {"flexprefill": {"min_budget": 128}}


@pytest.fixture(params=METHODS)
def method(request):
    """The method, its fixed sizes scaled down to short prompts."""
    published = METHODS[request.param]
    turned = published.turned(0.05, 600)
    return dataclasses.replace(turned, **SMALL.get(request.param, {}))


def test_every_method_is_a_frozen_record_that_prints_its_settings():
    assert len(set(map(repr, METHODS.values()))) == len(METHODS)
    for method in METHODS.values():
        assert isinstance(method, Method)
        assert method.knob
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.knob = ""


@pytest.mark.usefixtures("always_sparse")
def test_measured_attention_attends_to_the_plan(method):
    q, k, v = make_qkv(600, num_heads=4, num_kv_heads=2)
    measured = sa.measured_attention(q, k, v, method)
    assert measured.route.sparse
    assert measured.plan.density().mean() < 1
    assert measured.retained_mass is None
    assert measured.guarded is None
    assert_matches_oracle(measured.out, measured.lse, q, k, v, measured.plan)
    assert torch.equal(sa.sample_attention(q, k, v, method), measured.out)
    again = sa.select(q, k, method)
    assert torch.equal(again.indices, measured.plan.indices)


def test_short_calls_run_dense_by_the_same_policy(method):
    q, k, v = make_qkv(300)
    measured = sa.measured_attention(q, k, v, method)
    assert not measured.route.sparse
    assert measured.route == route(Problem.of(q, k, v), sa.SampleAttentionConfig())
    assert measured.plan is None


@pytest.mark.usefixtures("always_sparse")
def test_explain_names_the_method_and_who_attends(method):
    told = sa.explain(*make_qkv(300), method)
    assert told.route.of_sequence(0).selection == type(method).__name__
    assert f"sparse, selected by {type(method).__name__}" in str(told)


def test_a_sequence_does_not_depend_on_its_neighbours(method):
    lengths = [600, 333, 97]
    parts = [make_qkv(n, num_heads=4, num_kv_heads=2, seed=n) for n in lengths]
    q, k, v = (torch.cat([x[0] for x in xs], 1).transpose(0, 1) for xs in zip(*parts, strict=True))
    totals = torch.tensor([0, *lengths]).cumsum(0).int()
    plan = sa.select(q, k, method, sequences=Sequences.packed_from(totals))
    for n, (q_alone, k_alone, _) in enumerate(parts):
        alone = sa.select(q_alone, k_alone, method)
        assert torch.equal(plan_masks(plan, n), plan_masks(alone))
    out, lse = sa.attend(q, k, v, plan)
    assert_matches_oracle(out, lse, q, k, v, plan)


def test_padded_and_paged_sequences(method):
    q, k, v = make_qkv(150, 400, batch=2, num_heads=4, num_kv_heads=2)
    padded = Sequences.left_padded(torch.tensor([400, 260]), 150, 400)
    plan = sa.select(q, k, method, sequences=padded)
    alone = sa.select(q[1:], k[1:, :, 140:], method)
    assert torch.equal(plan_masks(plan, 1), plan_masks(alone))
    packed = Sequences.packed_from(torch.tensor([0, 150]).int(), torch.tensor([0, 400]).int())
    flat = (x[0].transpose(0, 1) for x in (k, v))
    cache, _, sequences = make_pages(*flat, packed, page_size=16)
    paged = sa.select(q[0].transpose(0, 1), cache, method, sequences=sequences)
    assert torch.equal(plan_masks(paged), plan_masks(plan, 0))


def test_heads_with_nan_are_dense(method):
    q, k, v = make_qkv(300, num_heads=4, num_kv_heads=2)
    k[0, 1, 17, 3] = torch.nan
    plan = sa.select(q, k, method)
    finite = sa.select(q[:, :2], k[:, :1], method)
    assert torch.equal(plan_masks(plan)[:2], plan_masks(finite))
    out = sa.attend(q, k, v, plan).out
    assert out[0, 2:, 17:].isnan().all()
    assert not out[0, :2].isnan().any()


def test_density_rises_with_the_dial(method):
    q, k, _ = make_qkv(1024, num_heads=4, num_kv_heads=2)
    dials = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
    reached = [float(sa.select(q, k, method.turned(d, 1024)).density().mean()) for d in dials]
    assert reached == sorted(reached)
    assert reached[0] < 0.5 < reached[-1]


@pytest.mark.parametrize("density", [0.3, 0.5])
def test_a_density_is_found(method, density):
    q, k, _ = make_qkv(2048, num_heads=2)
    found = at_density(method, q, k, density)
    assert type(found) is type(method)
    reached = float(sa.select(q, k, found).density().mean())
    assert abs(reached - density) < 0.1 * density


def test_selectors_see_whole_calls(method, monkeypatch):
    monkeypatch.setattr("sample_attention.routing.row_spans.COLUMNS_AT_ONCE", 1)
    assert row_spans(Problem.of(*make_qkv(600)), method) == [range(600)]


def test_the_policy_decides_at_the_same_lengths(method, monkeypatch):
    monkeypatch.setattr(
        "sample_attention.routing.policy.CROSSOVERS", {"cpu": Crossover(500, 1, "a test")}
    )
    assert route(Problem.of(*make_qkv(500)), method).sparse
    assert not route(Problem.of(*make_qkv(499)), method).sparse


def test_a_class_is_no_selector():
    with pytest.raises(InvalidConfig, match="a selector; got <class"):
        sa.select(*make_qkv(64)[:2], XAttention)
