"""What surrounds a call: gradients are refused, autocast changes no dtype, and no mode is kept."""

import contextlib

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import sample_attention as sa
from sample_attention import Sequences, preset, reference
from sample_attention.dense import limited
from sample_attention.errors import InvalidInput
from sample_attention.integrations.layout import sequences_of
from sample_attention.methods import METHODS
from sample_attention.problem import Problem, SequenceRow
from sample_attention.problem.modes import autocast_dtype, outside_autocast
from sample_attention.routing import policy
from sample_attention.testing import (
    assert_matches_oracle,
    make_pages,
    make_plan,
    make_qkv,
    plan_masks,
)

SMALL = preset(
    "pooled", coverage=0.6, segment=32, sample_stride=8, rows=8, window=8, dense_prefix=0,
    dense_tail=0, held_out_rows=4,
)  # fmt: skip


def attended(q, k, v):
    with torch.no_grad():
        plan = sa.select(q, k, SMALL)
    return sa.attend(q, k, v, plan)


CALLS = {
    "select": lambda q, k, v: sa.select(q, k, SMALL) if v is not None else None,
    "attend": attended,
    "measured_attention": lambda q, k, v: sa.measured_attention(q, k, v, SMALL),
    "sample_attention": lambda q, k, v: sa.sample_attention(q, k, v, SMALL),
    "explain": lambda q, k, v: sa.explain(q, k, v, SMALL),
}


@pytest.fixture(params=["dense", "sparse"])
def route(request, monkeypatch):
    """Both sides of the crossover."""
    if request.param == "sparse":
        anywhere = {"cpu": policy.Crossover(1, 2, "a test")}
        monkeypatch.setattr(policy, "CROSSOVERS", anywhere)
    return request.param


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("which", range(3), ids="qkv")
@pytest.mark.parametrize("q_len", [1, 60, 400])
@pytest.mark.parametrize("call", CALLS)
def test_gradients_are_refused_at_every_length(call, q_len, which):
    qkv = make_qkv(q_len, 400)
    qkv[which].requires_grad_()
    with torch.no_grad():
        CALLS[call](*qkv)
    with torch.inference_mode():
        CALLS[call](*qkv)
    if call == "select" and which == 2:
        return  # no values are given
    with pytest.raises(InvalidInput, match=r"requires a gradient.*torch\.no_grad"):
        CALLS[call](*qkv)


def test_gradients_are_refused_where_inputs_have_names():
    q, k, v = make_qkv(60)
    with pytest.raises(InvalidInput, match="gradient"):
        sa.sample_attention(q=q, k=k, v=v.requires_grad_())


AUTO = (torch.bfloat16, torch.float16)
GIVEN = [
    (torch.float32,) * 3,
    (torch.bfloat16,) * 3,
    (torch.float16,) * 3,
    (torch.float32, torch.float32, torch.bfloat16),  # as models pass them: q and k after rotation
    (torch.bfloat16, torch.float32, torch.float16),
]


def of(dtypes, q_len=150, kv_len=400):
    qkv = make_qkv(q_len, kv_len, num_heads=4, num_kv_heads=2)
    return [x.to(dtype) for x, dtype in zip(qkv, dtypes, strict=True)]


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("auto", AUTO, ids=str)
@pytest.mark.parametrize("dtypes", GIVEN, ids=str)
@pytest.mark.parametrize("q_len", [1, 150, 400])
def test_out_has_the_dtype_of_q_under_autocast(dtypes, auto, q_len):
    qkv = of(dtypes, q_len)
    halves = [x.to(auto) for x in qkv]
    for call in ("attend", "measured_attention", "sample_attention"):
        with torch.autocast("cpu", dtype=auto):
            result = CALLS[call](*qkv)
            assert torch.is_autocast_enabled("cpu")
        expected = CALLS[call](*halves)
        out, exact = (x if isinstance(x, torch.Tensor) else x.out for x in (result, expected))
        assert out.dtype == dtypes[0]
        assert torch.equal(out, exact.to(dtypes[0])), "the work is that of the halves"
        if out is not result and result.lse is not None:
            assert result.lse.dtype == torch.float32
            assert torch.equal(result.lse, expected.lse)


@pytest.mark.usefixtures("route")
def test_names_of_inputs_are_cast_as_well():
    q, k, v = of(GIVEN[3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            sa.sample_attention(k=k, v=v, q=q, config=SMALL), sa.sample_attention(q, k, v, SMALL)
        )


@pytest.mark.usefixtures("route")
def test_fp64_stays_as_it_does_in_torch():
    q, k, v = of((torch.float64,) * 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = sa.select(q, k, SMALL)
        out, lse = sa.attend(q, k, v, plan)
        assert torch.nn.functional.scaled_dot_product_attention(q, q, q).dtype == torch.float64
        with pytest.raises(InvalidInput, match="agree"):
            sa.sample_attention(q, k.float(), v)
    assert_matches_oracle(out, lse, q, k, v, plan)


def test_autocast_of_another_device_changes_nothing():
    q, k, v = of(GIVEN[0])
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert autocast_dtype(q.device) is None
        assert torch.equal(sa.sample_attention(q, k, v), CALLS["sample_attention"](q, k, v))


def test_plans_are_the_same_in_every_thread():
    q, k, _ = of((torch.float32,) * 3, 400)
    expected = sa.select(q.bfloat16(), k.bfloat16(), SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = sa.select(q, k, SMALL)
    assert torch.equal(plan.indices, expected.indices)
    assert torch.equal(plan.held_out.lse, expected.held_out.lse)


def test_explain_says_what_runs_under_autocast():
    q, k, v = of(GIVEN[3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "bfloat16" in sa.explain(q, k, v).problem


def test_outside_autocast_leaves_it_for_a_block():
    x, mask = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    with outside_autocast(x.device) as cast:
        assert cast(x) is x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with outside_autocast(x.device) as cast:
            assert not torch.is_autocast_enabled("cpu")
            assert cast(x).dtype == torch.bfloat16
            assert cast(mask) is mask
            assert cast(None) is None
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("where", ["in the graph", "around the call"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_call_does_the_same(where, backend):
    q, k, v = of(GIVEN[3])
    torch._dynamo.reset()

    def layer(q, k, v):
        if where == "in the graph":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return sa.sample_attention(q, k, v, SMALL)
        return sa.sample_attention(q, k, v, SMALL)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=where != "in the graph"):
        out = torch.compile(layer, backend=backend, fullgraph=True)(q, k, v)
        assert torch.equal(out, layer(q, k, v))
    assert out.dtype == q.dtype


def test_the_operator_itself_follows_autocast():
    q, k, v = of(GIVEN[3])
    op = torch.ops.sample_attention.sample_attention
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(q, k, v, SMALL.to_json(), None, "auto", "auto", [], [])
        assert torch.equal(out, sa.sample_attention(q, k, v, SMALL))
    assert out.dtype == q.dtype


def table_of_a_call(q):
    return Problem.of(q, q, q).sequences.table


def table_of_rows(q):
    return sequences_of((SequenceRow(0, 0, q.shape[2], 0, q.shape[2]),), q.device).table


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "a device": lambda: torch.device("meta"),
    "fp64": lambda: default_dtype(torch.float64),
    "bf16": lambda: default_dtype(torch.bfloat16),
}


def pages_of(q, k, v):
    """Packed sequences, their pages, and attention over those."""
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    ends = torch.tensor([0, 200, 400], device="cpu")
    packed = Sequences.packed_from(ends)
    keys, values, paged = make_pages(k, v, packed, 16)
    return sa.sample_attention(q, keys, values, sequences=paged)


def padded(q, k, v):
    sequences = Sequences.left_padded(torch.tensor([170], device="cpu"), 400, 400)
    return sa.sample_attention(q, k, v, sequences=sequences)


def windowed(q, k, v):
    return limited(q, k, v, Problem.of(q, k, v), 0.3, softcap=20.0, window=40)[0]


def baseline(name):
    rule = METHODS[name].turned(0.3, 400)

    def work(q, k, _):
        plan = sa.select(q, k, rule)
        return torch.cat([plan.density().flatten(), plan_masks(plan).flatten()])

    return work


def by_hand(q, k, v):
    sequences = Problem.of(q, k, v).sequences
    plan = make_plan(sequences, [[[[0], [1], [-1]] for _ in range(4)]], segment=150, window=2)
    return plan_masks(plan.with_dense(torch.zeros(1, 4, dtype=torch.bool, device="cpu")))


def by_reference(name):
    narrow = {} if name == "paper" else {"dense_prefix": 0}
    config = preset(name, dense_tail=0, coverage=0.7, **narrow)
    return lambda q, k, _: reference.select(q[0].double(), k[0].double(), config)


WORK = {
    "dense": sa.sample_attention,
    "chunk": lambda q, k, v: sa.sample_attention(q[:, :, -150:], k, v),
    "one query": lambda q, k, v: sa.sample_attention(q[:, :, -1:], k, v),
    "head dim": lambda q, k, v: sa.sample_attention(q, k, v[..., :8]),
    "padded": padded,
    "pages": pages_of,
    "limits": windowed,
    "by hand": by_hand,
    "inputs": lambda *_: torch.cat(make_qkv(50), 1),
    **{name: baseline(name) for name in METHODS},
    **{f"reference {name}": by_reference(name) for name in ("default", "pooled", "paper")},
}


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("work", WORK)
def test_defaults_of_the_process_change_nothing(work, default):
    qkv = of((torch.float32,) * 3, 400)
    with DEFAULTS[default]():
        given = WORK[work](*qkv)
    assert torch.equal(given, WORK[work](*qkv))


CACHES = [table_of_a_call, table_of_rows]
lengths = iter(range(50, 10_000))


def fake(call, length):
    with FakeTensorMode():
        call(torch.empty(1, 1, length, 8))


def traced(call, length):
    make_fx(lambda q: call(q) + 0, tracing_mode="fake")(torch.empty(1, 1, length, 8))


def functional(call, length):
    torch.func.functionalize(lambda q: call(q) + 0)(torch.empty(1, 1, length, 8))


def mapped(call, length):
    torch.func.vmap(lambda q: call(q) + 0)(torch.empty(2, 1, 1, length, 8))


def of_inference(call, length):
    with torch.inference_mode():
        call(torch.empty(1, 1, length, 8))


def on_meta(call, length):
    with torch.device("meta"):
        call(torch.empty(1, 1, length, 8, device="cpu"))


MODES = [fake, traced, functional, mapped, of_inference, on_meta]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", CACHES)
def test_no_mode_is_kept(call, mode):
    length = next(lengths)
    mode(call, length)
    table = call(torch.empty(1, 1, length, 8))
    assert table.tolist() == [[0, 0, length, 0, length]]
    assert type(table) is torch.Tensor
    assert not table.is_inference()
    assert table._version == 0
    assert call(torch.empty(1, 1, length, 8)) is table, "a plain table is remembered"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", CACHES)
def test_what_was_kept_is_no_trouble_in_a_mode(call, mode):
    length = next(lengths)
    call(torch.empty(1, 1, length, 8))
    mode(lambda q: call(q) + q.new_ones(1).int(), length)


def test_real_tensors_after_fake_ones():
    config = preset("default", held_out_rows=4)
    q, k, v = make_qkv(500, num_heads=2, num_kv_heads=1, head_dim=32)
    with FakeTensorMode():
        sa.explain(*(torch.empty(x.shape) for x in (q, k, v)), config, policy="sparse")
    measured = sa.measured_attention(q, k, v, config, policy="sparse")
    assert measured.retained_mass.isfinite().any()
    assert_matches_oracle(measured.out, measured.lse, q, k, v, measured.plan)


def test_a_fake_call_has_the_shape_of_a_real_one():
    q, k, v = make_qkv(64, num_heads=2, num_kv_heads=1)
    sa.sample_attention(q, k, v)
    with FakeTensorMode() as mode:
        out = sa.sample_attention(*(mode.from_tensor(x) for x in (q, k, v)))
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert sa.sample_attention(q, k, v).isfinite().all()
