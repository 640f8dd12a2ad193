"""The Triton kernels on a CPU, in Triton's interpreter; `make test` runs this on its own."""

import pytest
import torch

from sample_attention import SampleAttentionConfig, Sequences, attend, select
from sample_attention.errors import UnsupportedProblem
from sample_attention.kernels.device import DTYPES_INTERPRETED
from sample_attention.methods import METHODS
from sample_attention.problem import Problem
from sample_attention.routing.engines import refusal_of
from sample_attention.testing import assert_matches_oracle, make_pages, make_qkv, nan_poison

pytestmark = pytest.mark.interpreted

CONFIGS = {
    "segments-of-32": SampleAttentionConfig.preset(
        "pooled", dense_prefix=0, dense_tail=0, window=16, segment=32, pool=8, row_stride=4,
        coverage=0.8,
    ),
    "two-windows-per-segment": SampleAttentionConfig.preset(
        "pooled", dense_prefix=0, dense_tail=0, window=1, segment=256, coverage=0.6
    ),
    "dense-prefix": SampleAttentionConfig.preset(
        "pooled", dense_prefix=128, window=100, coverage=0.5
    ),
    "default": SampleAttentionConfig(dense_prefix=128, window=100, coverage=0.5),
    "paper": SampleAttentionConfig.preset("paper", coverage=0.7, dense_tail=7),
    "mlsys": SampleAttentionConfig.preset("mlsys", coverage=0.5, slash_coverage=0.5),
    "dense": SampleAttentionConfig(coverage=1.0),
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize(
    ("heads", "kv_heads", "q_len", "kv_len", "dim"),
    [(2, 1, 300, 300, 32), (3, 3, 111, 333, 24), (7, 1, 63, 63, 80)],
    ids=str,
)
def test_attend_matches_the_oracle(config, heads, kv_heads, q_len, kv_len, dim):
    q, k, v = make_qkv(q_len, kv_len, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, seed=1)
    plan = select(q, k, config, backend="eager")
    with nan_poison():
        out, lse = attend(q, k, v, plan, backend="triton")
    assert_matches_oracle(out, lse, q, k, v, plan)


@pytest.mark.parametrize("name", METHODS)
def test_attend_takes_the_plans_of_every_baseline(name):
    q, k, v = make_qkv(200, num_heads=2, num_kv_heads=1, seed=1)
    plan = select(q, k, METHODS[name].turned(0.1, 200))
    with nan_poison():
        out, lse = attend(q, k, v, plan, backend="triton")
    assert_matches_oracle(out, lse, q, k, v, plan)


def test_packed_sequences_match_each_alone():
    q, k, v = make_qkv(300, num_heads=2, num_kv_heads=1, seed=2)
    config = CONFIGS["segments-of-32"]
    totals = torch.tensor([0, 110, 300], dtype=torch.int32)
    packed = [x[0].transpose(0, 1) for x in (q, k, v)]
    sequences = Sequences.packed_from(totals)
    plan = select(*packed[:2], config, sequences=sequences, backend="eager")
    out, lse = attend(*packed, plan, backend="triton")
    for first, last in ((0, 110), (110, 300)):
        alone = [x[:, :, first:last].contiguous() for x in (q, k, v)]
        one = attend(*alone, select(*alone[:2], config, backend="eager"), backend="triton")
        assert torch.equal(out[first:last].transpose(0, 1), one.out[0])
        assert torch.equal(lse[:, first:last], one.lse[0])


def test_padding_gets_zeros():
    q, k, v = make_qkv(64, 96, num_heads=2, head_dim=16, seed=3)
    sequences = Sequences.left_padded(torch.tensor([50]), 64, 96)
    plan = select(q, k, CONFIGS["segments-of-32"], sequences=sequences, backend="eager")
    with nan_poison():
        out, lse = attend(q, k, v, plan, backend="triton")
    assert_matches_oracle(out, lse, q, k, v, plan)
    assert not out[:, :, :14].any()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("page_size", [1, 5, 16, 256])
def test_pages_do_not_change_a_bit(config, page_size):
    q, k, v = (x[0].transpose(0, 1) for x in make_qkv(150, 390, num_heads=2, num_kv_heads=1))
    packed = Sequences.packed_from(
        torch.tensor([0, 130, 131, 150]), torch.tensor([0, 300, 301, 390])
    )
    expected = attend(
        q, k, v, select(q, k, config, sequences=packed, backend="eager"), backend="triton"
    )
    k, v, paged = make_pages(k, v, packed, page_size)
    plan = select(q, k, config, sequences=paged, backend="eager")
    with nan_poison():
        out, lse = attend(q, k, v, plan, backend="triton")
    assert torch.equal(out, expected.out)
    assert torch.equal(lse, expected.lse)


def test_fp64_is_refused_with_the_accepted_types():
    q, k, v = make_qkv(16, num_heads=1, head_dim=16, dtype=torch.float64)
    assert "float16" in str(refusal_of("triton", Problem.of(q, k, v)))


def test_bf16_is_refused_with_its_reason():
    q, k, v = make_qkv(300, num_heads=2, num_kv_heads=1, dtype=torch.bfloat16)
    plan = select(q, k, backend="eager")
    for call in (
        lambda: select(q, k, backend="triton"),
        lambda: attend(q, k, v, plan, backend="triton"),
    ):
        with pytest.raises(UnsupportedProblem, match=r"triton: .*bfloat16 in Triton's interpreter"):
            call()
    out, lse = attend(q, k, v, plan)  # another backend
    assert_matches_oracle(out, lse, q, k, v, plan)


@pytest.mark.parametrize("dtype", DTYPES_INTERPRETED, ids=str)
def test_every_accepted_dtype_is_right(dtype):
    q, k, v = make_qkv(300, num_heads=2, num_kv_heads=1, dtype=dtype, seed=1)
    for config in (CONFIGS["default"], CONFIGS["segments-of-32"]):
        with nan_poison():
            plan = select(q, k, config, backend="triton")
            out, lse = attend(q, k, v, plan, backend="triton")
        assert_matches_oracle(out, lse, q, k, v, plan)


@pytest.mark.parametrize("rows", [8, 96, 100])
def test_plans_whose_segments_are_no_tiles_are_refused(rows):
    q, k, v = make_qkv(300)
    plan = select(q, k, SampleAttentionConfig(segment=rows, pool=rows, row_stride=2))
    answer = refusal_of("triton", Problem.of(q, k, v), form=plan.form)
    assert f"segments of {rows} rows" in answer
    assert "accepted" in answer
