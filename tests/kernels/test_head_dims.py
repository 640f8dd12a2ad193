"""Values of another head dim than the keys, on every route, against the fp64 reference."""

import pytest
import torch
from torch import library

import sample_attention as sa
from sample_attention import SampleAttentionConfig, Sequences
from sample_attention.errors import InvalidInput
from sample_attention.methods import METHODS
from sample_attention.problem import Problem
from sample_attention.routing import compile as ops
from sample_attention.routing import policy
from sample_attention.testing import assert_matches_oracle, make_pages, make_qkv

SMALL = SampleAttentionConfig.preset(
    "pooled", coverage=0.6, segment=32, row_stride=8, pool=8, window=8, dense_prefix=0,
    dense_tail=0, held_out=4,
)  # fmt: skip
DIMS = [(48, 32), (32, 48), (24, 1), (192, 128), (1, 8)]
LAYOUTS = ["square", "chunk", "decoding", "padded", "packed"]


def lay_out(layout, dims, dtype=torch.float32):
    """q, k, v and sequences; v is what keys of its head dim would be."""
    dim, v_dim = dims
    q_len = {"square": 220, "decoding": 1}.get(layout, 150)
    shape = {"batch": 2, "num_heads": 4, "num_kv_heads": 2, "dtype": dtype}
    q, k, _ = make_qkv(q_len, 220, head_dim=dim, seed=1, **shape)
    _, _, v = make_qkv(q_len, 220, head_dim=v_dim, seed=2, **shape)
    if layout == "padded":
        return q, k, v, Sequences.left_padded(torch.tensor([220, 90]), 150, 220)
    if layout == "packed":
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        ends = torch.tensor([0, 100, 150]), torch.tensor([0, 130, 220])
        return q, k, v, Sequences.packed_from(*ends)
    return q, k, v, None


@pytest.fixture(params=["dense", "sparse"])
def route(request, monkeypatch):
    """Both sides of the crossover."""
    if request.param == "sparse":
        anywhere = {"cpu": policy.Crossover(1, 2, "a test")}
        monkeypatch.setattr(policy, "CROSSOVERS", anywhere)
    return request.param


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_every_route_matches_the_oracle(route, dims, layout, scale):
    q, k, v, sequences = lay_out(layout, dims)
    given = {"scale": scale, "sequences": sequences}
    plan = sa.select(q, k, SMALL, **given)
    out, lse = sa.attend(q, k, v, plan, scale=scale)
    assert_matches_oracle(out, lse, q, k, v, plan, scale=scale)
    measured = sa.measured_attention(q, k, v, SMALL, **given)
    ran = route == "sparse" and layout != "decoding"
    assert measured.route.sparse == ran
    # Where v is wider, q and k are padded before they select: other rounding, another plan.
    used = measured.plan if ran else sa.select(q, k, SampleAttentionConfig(coverage=1), **given)
    assert_matches_oracle(measured.out, measured.lse, q, k, v, used, scale=scale)
    assert measured.out.is_contiguous() or layout == "packed"
    if ran:
        assert measured.retained_mass.isfinite().any()
    whole = sa.sample_attention(q, k, v, SMALL, **given)
    assert whole.shape == (*q.shape[:-1], dims[1])
    if not ran or sequences is not None:  # else it runs in spans
        assert torch.equal(whole, measured.out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("always_sparse")
def test_every_dtype_and_selector(dtype):
    q, k, v, _ = lay_out("chunk", (48, 32), dtype)
    for rule in ("default", "paper", "mlsys", METHODS["streaming_llm"].turned(0.3, 220)):
        measured = sa.measured_attention(q, k, v, rule)
        assert_matches_oracle(measured.out, measured.lse, q, k, v, measured.plan)


@pytest.mark.usefixtures("always_sparse")
def test_guarded_heads_are_computed_again():
    q, k, v, _ = lay_out("chunk", (48, 32))
    config = SampleAttentionConfig(guard=1.0, held_out=4, coverage=0.3, dense_prefix=0)
    measured = sa.measured_attention(q, k, v, config)
    assert measured.guarded.any()
    plan = measured.plan.with_dense(measured.guarded)
    assert_matches_oracle(measured.out, measured.lse, q, k, v, plan)


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_pages_are_not_copied(dims):
    q, k, v, sequences = lay_out("packed", dims)
    pages, _, paged = make_pages(k, k, sequences, 16)
    _, values, _ = make_pages(v, v, sequences, 16)
    with pytest.raises(InvalidInput, match=r"copy the whole cache; .* zeros at its end"):
        sa.sample_attention(q, pages, values, sequences=paged)


def test_explain_says_what_runs():
    q, k, v, _ = lay_out("square", (48, 32))
    found = sa.explain(q, k, v)
    assert "D=48/32" in found.problem
    assert found.route == sa.explain(q, k, k).route
    wide = lay_out("square", (128, 512))[:3]
    assert "head dim 512" in sa.explain(*wide).verdicts["hopper"]


@pytest.mark.parametrize("dims", [(48, 32), (32, 48)], ids=str)
@pytest.mark.parametrize("layout", ["square", "packed"])
def test_a_compiled_call_has_the_head_dim_of_v(route, layout, dims):
    del route
    torch._dynamo.reset()
    q, k, v, sequences = lay_out(layout, dims)
    compiled = torch.compile(
        lambda *qkv: sa.sample_attention(*qkv, SMALL, sequences=sequences) + 1,
        backend="aot_eager", fullgraph=True,
    )  # fmt: skip
    expected = sa.sample_attention(q, k, v, SMALL, sequences=sequences) + 1
    assert torch.equal(compiled(q, k, v), expected)
    tables, bounds = ops.flatten_sequences(sequences)
    operator = torch.ops.sample_attention.sample_attention.default
    library.opcheck(operator, (q, k, v, SMALL.to_json(), None, "auto", "auto", tables, bounds))


def test_the_facts_of_a_problem():
    q, k, v, _ = lay_out("chunk", (48, 32))
    problem = Problem.of(q, k, v)
    assert (problem.head_dim, problem.v_head_dim) == (48, 32)
    assert problem.scale(None) == 48**-0.5
    assert Problem.of(q, k, k).v_head_dim is None
    wide = problem.in_one_width
    assert (wide.head_dim, wide.v_head_dim) == (48, None)
    assert Problem.of(v, v, k).in_one_width.head_dim == 48
