"""Any input: a typed error, or a result that the oracle agrees with. Bad numbers stay visible."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sample_attention as sa
from sample_attention import PooledQueries, QueryMoments, SampledRows, Sequences, preset, reference
from sample_attention.config import PRESETS, fields_of
from sample_attention.errors import SampleAttentionError
from sample_attention.testing import assert_matches_oracle, make_qkv, plan_masks, split_sequences

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COUNTS = st.sampled_from([0, 1, 2, 3, 7, 8, 16, 32, 64, 100, 128, 200, 256, 2**20, 2**30])
SHARES = st.one_of(st.floats(0.01, 1), st.sampled_from([1, 0.95, 1e-9, 1 - 1e-12]))
FIELDS = {
    "coverage": SHARES,
    "slash_coverage": st.one_of(st.none(), SHARES),
    "segment": st.one_of(st.none(), COUNTS),
    "sample_stride": COUNTS,
    "chunks": st.one_of(st.none(), COUNTS),
    "sampled_keys": st.one_of(st.none(), COUNTS),
    "farthest_rows": COUNTS,
    "run_share": st.one_of(st.none(), SHARES),
    "rows": COUNTS,
    "ranking": st.sampled_from([QueryMoments(), PooledQueries(), SampledRows()]),
    "layer_ratio": st.floats(0.5, 70),
    "tighten_below": st.one_of(st.none(), COUNTS),
    "key_block": COUNTS,
    "window": COUNTS,
    "window_ratio": st.one_of(st.none(), SHARES),
    "dense_tail": COUNTS,
    "dense_prefix": COUNTS,
    "dense_above": SHARES,
    "held_out_rows": COUNTS,
    "min_retained_mass": st.one_of(st.none(), SHARES),
}
CHANGES = st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)


@st.composite
def tensors(draw):
    kv_len = draw(st.integers(1, 200))
    kv_heads = draw(st.sampled_from([1, 2]))
    q, k, v = make_qkv(
        draw(st.integers(1, kv_len)), kv_len, batch=draw(st.integers(1, 2)),
        num_heads=kv_heads * draw(st.sampled_from([1, 3])), num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([1, 2, 5, 16, 48])), dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    layouts = {
        "as made": lambda x: x,
        "heads last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "gaps": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
        "one row for all": lambda x: x[:, :, :1].expand(x.shape),
    }
    q, k, v = (layouts[draw(st.sampled_from(list(layouts)))](x) for x in (q, k, v))
    return q, k, v


@settings(max_examples=100)
@given(tensors(), st.sampled_from(sorted(PRESETS)), CHANGES)
def test_any_configuration(select, attend, qkv, name, fields):
    known = fields_of(PRESETS[name])
    try:
        config = preset(name, **{x: y for x, y in fields.items() if x in known})
    except SampleAttentionError:
        return
    q, k, v = qkv
    plan = select(q, k, config)
    out, lse = attend(q, k, v, plan)
    assert_matches_oracle(out, lse, q, k, v, plan)
    assert (lse > -math.inf).all()
    assert "StripePlan" in repr(plan)


SIZES = st.one_of(st.integers(0, 5), st.integers(6, 40))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(SIZES, SIZES, SIZES, SIZES), min_size=3, max_size=3),
    st.lists(st.integers(-1, 50), max_size=4),
    st.sampled_from(["none", "padded", "packed"]),
    st.booleans(),
)
def test_any_shapes(always_sparse, shapes, lengths, layout, alike):
    """Sizes drawn apart from each other: nearly all are refused, none in another way."""
    del always_sparse
    if alike:
        shapes = [shapes[0]] * 3
    q, k, v = (torch.randn(s) for s in shapes)
    config = preset(
        "pooled", segment=16, sample_stride=4, rows=4, window=4, dense_prefix=0, dense_tail=0,
        held_out_rows=1, min_retained_mass=0.9,
    )  # fmt: skip
    try:
        sequences = None
        if layout == "padded":
            sequences = Sequences.left_padded(torch.tensor(lengths).long(), *(
                x.shape[2] for x in (q, k)))  # fmt: skip
        elif layout == "packed":
            sequences = Sequences.packed_from(torch.tensor([0, *lengths]).cumsum(0))
            q, k, v = (x[:1].squeeze(0).transpose(0, 1) for x in (q, k, v))
        result = sa.measured_attention(q, k, v, config, sequences=sequences)
    except SampleAttentionError:
        return
    plan = result.plan.with_dense(result.guarded)
    assert_matches_oracle(result.out, None, q, k, v, plan)


BAD = {"nan": math.nan, "inf": math.inf, "minus inf": -math.inf}
SETTINGS = {
    "segments": preset(
        "pooled", dense_prefix=0, dense_tail=0, segment=32, sample_stride=8, rows=8, window=16,
        held_out_rows=2,
    ),
    "moments": preset(
        "default", dense_prefix=0, dense_tail=0, segment=32, sample_stride=8, sampled_keys=16,
        window=16,
    ),
    "sampled rows rank": preset(
        "pooled", dense_prefix=0, dense_tail=0, window=32, ranking=SampledRows()
    ),
    "paper": preset("paper"),
    "mlsys": preset("mlsys", key_block=32, coverage=0.5, slash_coverage=0.5),
}  # fmt: skip


@pytest.mark.parametrize("position", [0, 5, 150, 255, 299])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("which", ["q", "k"])
def test_bad_numbers_reach_the_rows_that_dense_attention_gives_them(
    select, attend, which, name, bad, position
):
    q, k, v = make_qkv(300, num_heads=2, num_kv_heads=1)
    {"q": q, "k": k}[which][:, :, position] = BAD[bad]
    plan = select(q, k, SETTINGS[name])
    out, lse = attend(q, k, v, plan)
    poisoned = reference.probabilities(q[0], k[0]).isnan().any(-1)
    assert poisoned.any()
    assert torch.equal(out[0].isnan().any(-1), poisoned)
    assert torch.equal(lse[0].isnan(), poisoned)
    exact, _ = reference.attend(q[0].double(), k[0].double(), v[0].double(), plan_masks(plan))
    torch.testing.assert_close(out[0][~poisoned], exact[~poisoned].float())


def test_infinity_in_one_dimension_of_a_key_reaches_every_row(select, attend):
    q, k, v = make_qkv(512, num_heads=1)
    k[:, :, 5, 3] = -math.inf
    out, _ = attend(q, k, v, select(q, k, SETTINGS["segments"]))
    poisoned = reference.probabilities(q[0], k[0]).isnan().any(-1)
    assert out[0].isnan().any(-1)[poisoned].all()


def test_bad_values_reach_the_rows_that_keep_their_key(select, attend):
    q, k, v = make_qkv(300, num_heads=2, num_kv_heads=1)
    plan = select(q, k, SETTINGS["segments"])
    clean, _ = attend(q, k, v, plan)
    v[:, :, 200] = math.nan
    out, _ = attend(q, k, v, plan)
    keeps = plan_masks(plan)[:, :, 200]
    assert out[0].isnan().all(-1)[keeps].all()
    # Rows of a tile in which some row keeps the key may be lost with it, as in fused attention.
    assert torch.equal(out[0, :, :128], clean[0, :, :128])


@pytest.mark.parametrize("bad", BAD)
def test_bad_numbers_through_the_whole_operation(always_sparse, bad):
    del always_sparse
    q, k, v = make_qkv(600, num_heads=2)
    q[:, 0, 580], k[:, 1, 300] = BAD[bad], BAD[bad]
    config = preset(
        "pooled", dense_prefix=0, dense_tail=0, window=32, held_out_rows=2, min_retained_mass=0.99,
        segment=64, sample_stride=8, rows=16,
    )  # fmt: skip
    result = sa.measured_attention(q, k, v, config)
    lost = result.out[0].isnan().all(-1)
    assert lost[0].nonzero()[:, 0].tolist() == [580]
    assert lost[1, 300:].all()
    assert not lost[1, :300].any()


@given(st.lists(st.tuples(st.integers(1, 70), st.integers(0, 70)), min_size=1, max_size=4))
def test_any_packing(select, attend, spans):
    q_ends = torch.tensor([0] + [q for q, _ in spans]).cumsum(0)
    kv_ends = torch.tensor([0] + [q + more for q, more in spans]).cumsum(0)
    q, k, v = make_qkv(int(q_ends[-1]), int(kv_ends[-1]), head_dim=16)
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    sequences = Sequences.packed_from(q_ends, kv_ends)
    config = preset(
        "pooled", dense_prefix=0, dense_tail=0, segment=32, sample_stride=4, rows=8, window=8,
        held_out_rows=2,
    )  # fmt: skip
    plan = select(q, k, config, sequences=sequences)
    out, lse = attend(q, k, v, plan)
    assert_matches_oracle(out, lse, q, k, v, plan)
    assert [len(x[0]) for x in split_sequences(out, sequences)] == [n for n, _ in spans]
