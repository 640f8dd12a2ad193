"""`measured_attention`, `sample_attention`, `explain`, the policy and the choice of a backend."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import sample_attention as sa
from sample_attention import SampleAttentionConfig, Sequences, api, preset
from sample_attention.config import Interval, with_fields
from sample_attention.dense import dense, dense_with_lse, limited, provider
from sample_attention.errors import InvalidConfig, UnsupportedProblem
from sample_attention.problem import Problem
from sample_attention.routing import engines, policy
from sample_attention.routing.engines import ATTENTION, BACKENDS, SELECTION
from sample_attention.routing.policy import CROSSOVERS
from sample_attention.routing.route import Dense, Sparse, route
from sample_attention.testing import assert_matches_oracle, make_pages, make_qkv

SMALL = preset(
    "pooled", coverage=0.6, segment=32, sample_stride=8, rows=8, window=8, dense_prefix=0,
    dense_tail=0, held_out_rows=4,
)  # fmt: skip
ROW = CROSSOVERS["cpu"]


def lay_out(layout):
    """q, k, v and sequences of the same content, batched, padded or packed."""
    q, k, v = make_qkv(150, 200, batch=2, num_heads=4, num_kv_heads=2, dtype=torch.float64)
    if layout == "padded":
        return q, k, v, Sequences.left_padded(torch.tensor([200, 90]), 150, 200)
    if layout == "packed":
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        ends = torch.tensor([0, 100, 150]), torch.tensor([0, 130, 200])
        return q, k, v, Sequences.packed_from(*ends)
    return q, k, v, None


def every_key(q, k, sequences):
    return sa.select(q, k, SampleAttentionConfig(coverage=1), sequences=sequences)


LAYOUTS = ["batched", "padded", "packed"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_short_prompts_run_dense_and_say_so(layout):
    q, k, v, sequences = lay_out(layout)
    result = sa.measured_attention(q, k, v, SMALL, sequences=sequences)
    assert not result.route.sparse
    assert "sparse pays from" in result.route.reason
    assert (result.plan, result.retained_mass, result.guarded) == (None, None, None)
    assert_matches_oracle(result.out, None, q, k, v, every_key(q, k, sequences))
    assert torch.equal(sa.sample_attention(q, k, v, SMALL, sequences=sequences), result.out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_calls_select_and_attend(always_sparse, layout):
    del always_sparse
    q, k, v, sequences = lay_out(layout)
    result = sa.measured_attention(q, k, v, SMALL, sequences=sequences)
    assert result.route.sparse
    plan = sa.select(q, k, SMALL, sequences=sequences)
    assert torch.equal(plan.indices, result.plan.indices)
    out, lse = sa.attend(q, k, v, plan)
    assert torch.equal(result.out, out)
    torch.testing.assert_close(plan.retained_mass(lse), result.retained_mass, equal_nan=True)
    assert result.guarded is None
    assert torch.equal(sa.sample_attention(q, k, v, SMALL, sequences=sequences), out)
    assert_matches_oracle(out, None, q, k, v, plan)


def test_without_held_out_rows_nothing_is_measured(always_sparse):
    del always_sparse
    q, k, v = make_qkv(100)
    result = sa.measured_attention(q, k, v, "paper")
    assert result.plan.held_out is None
    assert result.retained_mass is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_guard_sends_heads_that_miss_it_to_dense(always_sparse, layout):
    del always_sparse
    q, k, v, sequences = lay_out(layout)
    without = sa.measured_attention(q, k, v, SMALL, sequences=sequences)
    means = without.retained_mass.flatten(2).nanmean(-1)
    guard = float(means.median())
    config = with_fields(SMALL, min_retained_mass=guard)
    result = sa.measured_attention(q, k, v, config, sequences=sequences)
    assert torch.equal(result.guarded, means < guard)
    assert result.guarded.any()
    assert not result.guarded.all()
    guarded = result.plan.with_dense(result.guarded)
    assert_matches_oracle(result.out, None, q, k, v, guarded)
    missed = result.guarded.nonzero().tolist()
    parts = sa.testing.split_sequences(result.out, result.plan.sequences)
    wanted = dense_by_sequence(q, k, v, result.plan.sequences)
    before = sa.testing.split_sequences(without.out, result.plan.sequences)
    for n in range(2):
        for h in range(4):
            kept = wanted[n][h] if [n, h] in missed else before[n][h]
            torch.testing.assert_close(parts[n][h], kept)
    assert torch.equal(sa.sample_attention(q, k, v, config, sequences=sequences), result.out)


def dense_by_sequence(q, k, v, sequences):
    parts = [
        sa.testing.split_sequences(x, sequences, keys=keys)
        for x, keys in ((q, False), (k, True), (v, True))
    ]
    return [bottom_right(*(x[None] for x in qkv))[0] for qkv in zip(*parts, strict=True)]


def bottom_right(q, k, v):
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def test_guard_that_every_head_meets(always_sparse):
    del always_sparse
    q, k, v = make_qkv(200)
    config = with_fields(SMALL, min_retained_mass=0.01)
    assert not sa.measured_attention(q, k, v, config).guarded.any()


@pytest.mark.parametrize("q_len", [1, 7, 150, 200])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dense_matches_the_oracle(q_len, dtype):
    q, k, v = make_qkv(q_len, 200, batch=2, num_heads=4, num_kv_heads=2, dtype=dtype)
    problem, plan = Problem.of(q, k, v), every_key(q, k, None)
    out = dense(q, k, v, problem, problem.scale(None))
    assert_matches_oracle(out, None, q, k, v, plan)
    assert_matches_oracle(*dense_with_lse(q, k, v, problem, problem.scale(None)), q, k, v, plan)
    assert "sdpa" in provider(problem)


@pytest.mark.parametrize("q_len", [1, 33])
def test_dense_rows_of_padding_are_zeros(q_len):
    q, k, v = make_qkv(q_len, 50, batch=3)
    sequences = Sequences.left_padded(torch.tensor([50, 20, 1]), q_len, 50)
    out = sa.sample_attention(q, k, v, sequences=sequences)
    assert_matches_oracle(out, None, q, k, v, every_key(q, k, sequences))


@pytest.mark.parametrize("window", [1, 30, 300])
def test_limited_window(window):
    q, k, v = make_qkv(270, 290, num_heads=4, num_kv_heads=2, dtype=torch.float64)
    problem = Problem.of(q, k, v)
    plan = sa.testing.make_plan(
        problem.sequences, [[[[]]] * 4], segment=2**30, window=window, window_alignment=1
    )
    out, lse = limited(q, k, v, problem, problem.scale(None), window=window)
    assert_matches_oracle(out, lse, q, k, v, plan)


def test_limited_softcap():
    q, k, v = make_qkv(120, 130, num_heads=4, num_kv_heads=2, dtype=torch.float64)
    problem = Problem.of(q, k, v)
    out, lse = limited(q, k, v, problem, 0.5, softcap=3.0)
    scores = 3 * torch.tanh(q @ k.repeat_interleave(2, 1).mT * 0.5 / 3)
    scores = scores.masked_fill(~torch.ones(120, 130, dtype=torch.bool).tril(10), -torch.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    torch.testing.assert_close(out, scores.softmax(-1) @ v.repeat_interleave(2, 1))


def facts(q_len, kv_len):
    x = torch.zeros(1, 1, 1, 2)
    return Problem.of(x.expand(1, 1, q_len, 2), *[x.expand(1, 1, kv_len, 2)] * 2)


@pytest.mark.parametrize(
    ("q_len", "kv_len", "fields", "sparse", "word"),
    [
        (ROW.min_q_len, ROW.min_kv_len, {}, True, "pays"),
        (ROW.min_kv_len * 4, ROW.min_kv_len * 4, {}, True, "pays"),
        (ROW.min_q_len - 1, ROW.min_kv_len * 4, {}, False, "queries"),
        (1, ROW.min_kv_len * 4, {}, False, "1 queries"),
        (ROW.min_q_len, ROW.min_kv_len - 1, {}, False, "keys"),
        (ROW.min_kv_len * 4, ROW.min_kv_len * 4, {"coverage": 1}, False, "coverage 1"),
    ],
)
def test_policy(q_len, kv_len, fields, sparse, word):
    answer = route(facts(q_len, kv_len), SampleAttentionConfig(**fields))
    assert answer.sparse is sparse
    assert word in answer.reason


def test_crossovers_name_their_measurement():
    assert "cpu" in CROSSOVERS
    for row in CROSSOVERS.values():
        assert row.min_kv_len >= 1
        assert row.min_q_len >= 1
        assert row.measured


@pytest.mark.parametrize("policy", ["", "Sparse", None, 1])
def test_unknown_policies(policy):
    q, k, v = make_qkv(20)
    with pytest.raises(InvalidConfig, match="accepted: auto, dense, sparse"):
        sa.sample_attention(q, k, v, policy=policy)


def test_a_policy_decides_for_all_but_single_queries():
    long, short = facts(ROW.min_kv_len, ROW.min_kv_len), facts(40, 50)
    config = SampleAttentionConfig()
    assert not route(long, config, policy="dense").sparse
    assert route(short, config, policy="sparse").sparse
    assert "decoding" in route(facts(1, 50), config, policy="sparse").reason


def test_the_end_of_a_prompt_is_kept_where_it_is_or_may_be():
    problem, config = facts(200, 300), SampleAttentionConfig(dense_tail=64)
    tails = {
        ends: route(problem, config, policy="sparse", ends_prompt=ends).parts[0].rule.dense_tail
        for ends in (True, None, False)
    }
    assert tails == {True: 64, None: 64, False: 0}


def test_explain_names_route_and_verdicts(monkeypatch):
    q, k, v = make_qkv(64, num_heads=4, num_kv_heads=2)
    dense_call = sa.explain(q, k, v)
    assert not dense_call.route.sparse
    assert tuple(dense_call.verdicts) == tuple(BACKENDS)
    assert dense_call.verdicts["eager"] == engines.ACCEPTED
    text = str(dense_call)
    for word in ("H=4/2", "Sq<=64", "-> dense, by sdpa", dense_call.route.reason, *BACKENDS):
        assert word in text
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(1, 1, "a test"))
    sparse_call = sa.explain(q, k, v, SMALL, backend="eager")
    answer = sparse_call.route.of_sequence(0)
    assert (answer.selection, answer.attention) == ("eager", "eager")
    assert "-> sparse, selected by eager, attended by eager" in str(sparse_call)
    chunk = sa.explain(q[:, :, -9:], k, v, policy="dense")
    assert "prefix" in chunk.route.of_sequence(0).provider
    assert sa.explain(q[:, :, -1:], k, v, policy="dense").route.of_sequence(0).provider == "sdpa"


class Refuser:
    """An engine that takes nothing."""

    name = "refuser"

    def refusal(self, problem, _asked=None):
        return f"does not take heads of {problem.head_dim}"


@pytest.fixture
def refuser(monkeypatch):
    """An engine that comes first."""
    for operation, known in (("SELECTION", SELECTION), ("ATTENTION", ATTENTION)):
        monkeypatch.setattr(engines, operation, ("refuser", "eager"))
        find = f"{operation.lower()}_engine"
        found = getattr(engines, find)
        take = {"refuser": lambda _: Refuser()}
        monkeypatch.setattr(
            engines, find, lambda name, found=found, take=take: take.get(name, found)(name)
        )
        assert "eager" in known
    names = {"refuser": ("refuser", "refuser"), "eager": ("eager", "eager")}
    monkeypatch.setattr(engines, "BACKENDS", names)


def test_auto_takes_the_first_that_accepts(refuser):
    del refuser
    problem = facts(3, 4)
    assert engines.choose_engines("auto", problem, SMALL) == ("eager", "eager")
    assert engines.verdicts(problem)["refuser"] == "does not take heads of 2"


def test_a_name_never_falls_back(refuser):
    del refuser
    for policy_of_call in ("auto", "sparse"):
        with pytest.raises(UnsupportedProblem) as error:
            route(facts(3, 4), SMALL, backend="refuser", policy=policy_of_call)
        assert error.value.verdicts == {
            "refuser": "does not take heads of 2", "eager": engines.ACCEPTED
        }  # fmt: skip
        lines = str(error.value).splitlines()
        assert "N=1 H=1/1 Sq<=3 Skv<=4 D=2 float32 on cpu" in lines[0]
        assert lines[1].strip() == "refuser: does not take heads of 2"


def test_when_none_accepts(refuser, monkeypatch):
    del refuser
    monkeypatch.setattr(engines, "ATTENTION", ("refuser",))
    with pytest.raises(UnsupportedProblem):
        engines.choose_attention("auto", facts(3, 4))


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_by_name(name):
    selecting, attending = engines.BACKENDS[name]
    assert engines.selection_engine(selecting).name == selecting
    assert engines.attention_engine(attending).name == attending


@pytest.mark.parametrize("name", ["", "Eager", "auto ", None, 3, "base", "dense"])
def test_unknown_backends(name):
    with pytest.raises(InvalidConfig):
        engines.engines_of(name)


LENGTHS = [(500, 500), (1, 700), (3, 40), (300, 600), (200, 200)]
"""Queries and keys of a batch in which the second and third sequence run dense."""


def mixed(layout):
    """A packed, paged or padded batch, and its sequences alone."""
    alone = [
        make_qkv(*n, num_heads=4, num_kv_heads=2, dtype=torch.float64, seed=i)
        for i, n in enumerate(LENGTHS)
    ]
    if layout == "padded":
        longest = max(n for n, _ in LENGTHS), max(n for _, n in LENGTHS)
        q, k, v = (
            torch.cat([F.pad(x[i], (0, 0, longest[i > 0] - x[i].shape[2], 0)) for x in alone])
            for i in range(3)
        )
        rows = tuple(
            (b, longest[0] - q_len, q_len, longest[1] - kv_len, kv_len)
            for b, (q_len, kv_len) in enumerate(LENGTHS)
        )
        table = torch.tensor(rows, dtype=torch.int32)
        return (q, k, v), Sequences(table, *longest, host_rows=rows), alone
    q, k, v = (torch.cat([x[i] for x in alone], 2)[0].transpose(0, 1) for i in range(3))
    q_ends, kv_ends = (torch.tensor([0, *(n[i] for n in LENGTHS)]).cumsum(0).int() for i in (0, 1))
    packed = Sequences.packed_from(q_ends, kv_ends)
    if layout == "paged":
        k, v, packed = make_pages(k, v, packed, 16)
    return (q, k, v), packed, alone


@pytest.mark.parametrize("layout", ["packed", "paged", "padded"])
def test_sequences_of_a_batch_run_each_in_its_way(monkeypatch, layout):
    """A sequence's result does not depend on its neighbours, nor does its route."""
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(150, 100, "a test"))
    (q, k, v), sequences, alone = mixed(layout)
    measured = sa.measured_attention(q, k, v, SMALL, sequences=sequences)
    kinds = [type(measured.route.of_sequence(n)) for n in range(len(LENGTHS))]
    assert kinds == [Sparse, Dense, Dense, Sparse, Sparse]
    assert [(part.first, part.stop) for part in measured.route.parts] == [(0, 1), (1, 3), (3, 5)]
    assert measured.plan is None
    assert [part.plan is not None for part in measured.parts] == [True, False, True]
    out = sa.sample_attention(q, k, v, SMALL, sequences=sequences)
    assert torch.equal(out, measured.out)
    for n, ((b, q0, q_len, _, _), given) in enumerate(zip(sequences.rows(), alone, strict=True)):
        own = sa.measured_attention(*given, SMALL)
        assert isinstance(own.route.of_sequence(0), kinds[n])
        found = out[b, :, q0 : q0 + q_len] if layout == "padded" else out[q0 : q0 + q_len]
        expected = own.out[0] if layout == "padded" else own.out[0].transpose(0, 1)
        torch.testing.assert_close(found, expected)
    covered = sum(q_len for q_len, _ in LENGTHS)
    assert int((out != 0).any(-1).any(1).sum()) == covered


def test_parts_have_the_head_dim_and_the_dtype_of_the_whole(monkeypatch):
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(150, 100, "a test"))
    (q, k, v), sequences, _ = mixed("packed")
    narrow = sa.measured_attention(q, k, v[..., :16], SMALL, sequences=sequences)
    assert len(narrow.parts) == 3
    assert {part.out.shape[-1] for part in (narrow, *narrow.parts)} == {16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sa.measured_attention(*(x.float() for x in (q, k, v)), SMALL, sequences=sequences)
    assert {part.out.dtype for part in (cast, *cast.parts)} == {torch.float32}


def test_a_tuned_configuration_is_that_of_each_sequence():
    narrow, wide = (with_fields(SMALL, window=n) for n in (8, 64))
    tuned = sa.Tuned("a model", (Interval(0, wide), Interval(450, narrow)))
    (q, k, v), sequences, _ = mixed("packed")
    measured = sa.measured_attention(q, k, v, tuned, sequences=sequences, policy="sparse")
    windows = [part.rule and part.rule.window for part in measured.route.parts]
    assert windows == [8, None, 64, 8, 64]
    assert measured.lse is None


def test_the_lse_of_parts_is_that_of_the_call(monkeypatch):
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(1, 1, "a test"))
    narrow, wide = (with_fields(SMALL, window=n) for n in (8, 64))
    tuned = sa.Tuned("a model", (Interval(0, wide), Interval(450, narrow)))
    (q, k, v), sequences, alone = mixed("packed")
    measured = sa.measured_attention(q, k, v, tuned, sequences=sequences)
    assert len(measured.parts) == 4
    for row, given in zip(sequences.rows(), alone, strict=True):
        own = sa.measured_attention(*given, tuned)
        found = measured.lse[:, row.q_start : row.q_start + row.q_len]
        torch.testing.assert_close(found, own.lse[0])


def test_a_route_is_asked_for_once(monkeypatch):
    asked = []
    find = api.route
    monkeypatch.setattr(api, "route", lambda *x, **y: asked.append(x) or find(*x, **y))
    q, k, v = make_qkv(300, num_heads=4, num_kv_heads=2)
    for operation in (sa.sample_attention, sa.measured_attention):
        for decided in ("dense", "sparse"):
            asked.clear()
            operation(q, k, v, SMALL, policy=decided)
            assert len(asked) == 1


def test_rows_that_lie_on_the_host_are_read_there(monkeypatch):
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(150, 100, "a test"))
    (q, k, v), sequences, _ = mixed("packed")
    unnamed = replace(sequences, host_rows=None)  # as a compiled graph hands them on
    expected = sa.measured_attention(q, k, v, SMALL, sequences=sequences)
    found = sa.measured_attention(q, k, v, SMALL, sequences=unnamed)
    assert found.route == expected.route
    assert torch.equal(found.out, expected.out)
