"""Bad input gets a typed error that names what was given, what is accepted, what to do."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import sample_attention as sa
from sample_attention import SampleAttentionConfig, Sequences, Tuned
from sample_attention.config import Interval
from sample_attention.errors import (
    InvalidConfig,
    InvalidInput,
    MissingExtra,
    PlanMismatch,
    SampleAttentionError,
    UnsupportedProblem,
)
from sample_attention.routing.engines import BACKENDS
from sample_attention.testing import make_qkv

LAYERED = torch.zeros(1, 2, 8, 4)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def jagged():
    parts = [torch.randn(9, 2, 8), torch.randn(7, 2, 8)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)


TENSORS = {
    "rank 3": ((zeros(2, 8, 4), LAYERED), ["q", "(2, 8, 4)", "[B, H, S, D]"]),
    "rank 5": ((LAYERED, LAYERED[None]), ["k", "(1, 1, 2, 8, 4)", "[B, H, S, D]"]),
    "a scalar": ((torch.tensor(1.0), LAYERED), ["q", "()", "[B, H, S, D]"]),
    "not a tensor": (([[1.0]], LAYERED), ["q", "torch.Tensor", "list"]),
    "none": ((LAYERED, None), ["k", "torch.Tensor", "NoneType"]),
    "integers": ((LAYERED.int(), LAYERED.int()), ["q", "int32", "float64", "bfloat16"]),
    "complex": ((LAYERED.cfloat(), LAYERED.cfloat()), ["q", "complex64", "float32"]),
    "two dtypes": ((LAYERED, LAYERED.half()), ["k", "float16", "q", "float32", "agree"]),
    "two devices": ((LAYERED, LAYERED.to("meta")), ["k", "meta", "q", "cpu", "agree"]),
    "heads": ((zeros(1, 3, 8, 4), LAYERED), ["3", "2", "multiple"]),
    "fewer heads": ((zeros(1, 1, 8, 4), LAYERED), ["1", "2", "multiple"]),
    "batches": ((zeros(2, 2, 8, 4), LAYERED), ["batch", "2", "1"]),
    "head dims": ((zeros(1, 2, 8, 6), LAYERED), ["head dims", "6", "4"]),
    "more queries": ((zeros(1, 2, 9, 4), LAYERED), ["Sq=9", "Skv=8", "last Sq"]),
    "no query": ((zeros(1, 2, 0, 4), LAYERED), ["q", "empty", "(1, 2, 0, 4)"]),
    "no key": ((LAYERED, zeros(1, 2, 0, 4)), ["k", "empty", "(1, 2, 0, 4)"]),
    "no batch": ((zeros(0, 2, 8, 4), zeros(0, 2, 8, 4)), ["q", "empty", "(0, 2, 8, 4)"]),
    "no head": ((zeros(1, 0, 8, 4), LAYERED), ["q", "empty"]),
    "no width": ((zeros(1, 2, 8, 0), zeros(1, 2, 8, 0)), ["q", "empty"]),
    "strided width": ((LAYERED, zeros(1, 2, 4, 8).mT), ["k", "strides", ".contiguous()"]),
    "jagged": ((jagged(), jagged()), ["q", "nested", "Sequences.packed_from"]),
    "nested": ((LAYERED, torch.nested.nested_tensor([zeros(2, 8, 4)] * 2)), ["k", "nested"]),
    "sparse": ((LAYERED, LAYERED.to_sparse()), ["k", "torch.sparse_coo", "plain tensors"]),
    "sparse rows": ((zeros(8, 4).to_sparse_csr(), LAYERED), ["q", "torch.sparse_csr", "plain"]),
    "mkldnn": ((LAYERED.to_mkldnn(), LAYERED), ["q", "torch._mkldnn", "plain"]),
    "bool": ((LAYERED.bool(), LAYERED.bool()), ["q", "torch.bool", "float32"]),
    "fp8": ((LAYERED.to(torch.float8_e4m3fn),) * 2, ["q", "float8_e4m3fn", "float32"]),
    "beyond int32": (
        (zeros(1, 1, 1, 1).expand(1, 1, 2**31, 1),) * 2,
        ["Skv=2147483648", "2147483647"],
    ),
    "every second": ((zeros(1, 2, 8, 8)[..., ::2], LAYERED), ["q", "strides", ".contiguous()"]),
}
CALLS = {
    "select": sa.select,
    "sample_attention": lambda q, k, **options: sa.sample_attention(q, k, k, **options),
    "measured_attention": lambda q, k, **options: sa.measured_attention(q, k, k, **options),
    "explain": lambda q, k, **options: sa.explain(q, k, k, **options),
}


def assert_names(error, *words):
    text = str(error.value)
    missing = [word for word in words if word not in text]
    assert not missing, f"the message does not name {missing}: {text}"
    assert "\n" not in text or isinstance(error.value, UnsupportedProblem)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case, call):
    (q, k), words = TENSORS[case]
    with pytest.raises(InvalidInput) as error:
        CALLS[call](q, k)
    assert_names(error, *words)


@pytest.mark.parametrize(
    ("v", "words"),
    [
        (zeros(1, 2, 7, 4), ["k (1, 2, 8, 4)", "v (1, 2, 7, 4)", "same shape"]),
        (zeros(1, 1, 8, 4), ["k (1, 2, 8, 4)", "v (1, 1, 8, 4)"]),
        (zeros(1, 2, 8, 0), ["v", "empty"]),
        (zeros(1, 3, 8, 6), ["v (1, 3, 8, 6)", "but for the head dim"]),
        (zeros(1, 2, 8, 4, dtype=torch.float64), ["v", "float64", "float32"]),
        (zeros(1, 2, 4, 8).mT, ["v", "strides"]),
        ("v", ["v", "str"]),
    ],
    ids=str,
)
def test_values(v, words):
    plan = sa.select(LAYERED, LAYERED)
    for call in (
        lambda: sa.sample_attention(LAYERED, LAYERED, v),
        lambda: sa.attend(LAYERED, LAYERED, v, plan),
    ):
        with pytest.raises(InvalidInput) as error:
            call()
        assert_names(error, *words)


SCALES = [float("nan"), float("inf"), -1.0, 0, "big", [1.0], True, 1j, torch.tensor(0.5)]
SCALES += [np.float32("nan"), np.int64(-1), np.bool_(True), 10**309, Fraction(10**309)]


@pytest.mark.parametrize("scale", SCALES, ids=repr)
@pytest.mark.parametrize("call", [c for c in CALLS if c != "explain"])
def test_scale(call, scale):
    with pytest.raises(InvalidInput) as error:
        CALLS[call](LAYERED, LAYERED, scale=scale)
    assert_names(error, "scale", repr(scale), "finite")
    with pytest.raises(InvalidInput, match="scale"):
        sa.attend(LAYERED, LAYERED, LAYERED, sa.select(LAYERED, LAYERED), scale=scale)


@pytest.mark.parametrize("scale", [np.float64(0.5), np.float32(0.5), np.int64(1), Fraction(1, 2)])
def test_scales_of_other_libraries(scale):
    q, k, v = make_qkv(40)
    given, own = (sa.sample_attention(q, k, v, scale=x) for x in (scale, float(scale)))
    assert torch.equal(given, own)


@pytest.mark.parametrize("given", [[0, 8], torch.tensor([0, 8]), "packed", 3], ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_sequences_that_are_none(call, given):
    with pytest.raises(InvalidInput) as error:
        CALLS[call](LAYERED, LAYERED, sequences=given)
    assert_names(error, "sequences", type(given).__name__, "Sequences.packed_from")


@pytest.mark.parametrize("plan", [None, "default", SampleAttentionConfig()], ids=str)
def test_plans_that_are_none(plan):
    with pytest.raises(InvalidInput) as error:
        sa.attend(LAYERED, LAYERED, LAYERED, plan)
    assert_names(error, "plan", "StripePlan", "select")


@pytest.mark.parametrize("call", CALLS)
def test_paths(call, tmp_path):
    tuned = Tuned("tiny", (Interval(np.int64(0), SampleAttentionConfig(coverage=0.5)),))
    tuned.save(tmp_path / "tuned.json")
    tuned.save(tmp_path / "tuned")  # an object is a path whatever its end
    for path in (tmp_path / "tuned.json", str(tmp_path / "tuned.json"), tmp_path / "tuned"):
        CALLS[call](LAYERED, LAYERED, config=path)
    for path in (tmp_path / "other.json", str(tmp_path / "other.json"), tmp_path):
        with pytest.raises(InvalidConfig) as error:
            CALLS[call](LAYERED, LAYERED, config=path)
        assert_names(error, "cannot read the tuned configuration", str(path))


@pytest.mark.parametrize("given", [None, b"default", 3, {}, SampleAttentionConfig], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_rules_that_are_none(call, given):
    with pytest.raises(InvalidConfig) as error:
        CALLS[call](LAYERED, LAYERED, config=given)
    assert_names(error, "SampleAttentionConfig", "preset", "path", repr(type(given)))


NUMBERS = {
    "window": np.int64(64), "dense_tail": np.int32(8), "held_out": np.uint8(4),
    "coverage": np.float64(0.5), "dense_above": np.float32(0.5), "guard": np.float16(0.5),
    "depth_contrast": np.int64(2), "runs": Fraction(1, 2),
    "head_coverage": (np.float32(0.5), np.float64(0.25)),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_other_libraries_become_plain(name):
    config = SampleAttentionConfig(**{"held_out": 4, name: NUMBERS[name]})
    found = getattr(config, name)
    for part in found if isinstance(found, tuple) else (found,):
        assert type(part) in (int, float)
    assert SampleAttentionConfig.from_json(config.to_json()) == config
    assert config == SampleAttentionConfig(**{"held_out": 4, name: found})
    interval = Interval(np.int64(8), config)
    assert type(interval.min_kv_len) is int
    assert (
        Tuned.from_json(Tuned("tiny", (Interval(0, config),)).to_json()).intervals[0].config
        == config
    )


@pytest.mark.parametrize("call", CALLS)
def test_names_of_presets_and_backends(call):
    with pytest.raises(InvalidConfig) as error:
        CALLS[call](LAYERED, LAYERED, config="sparse")
    assert_names(error, "'sparse'", "default", "mlsys", "paper")
    with pytest.raises(InvalidConfig) as error:
        CALLS[call](LAYERED, LAYERED, backend="cuda")
    assert_names(error, "'cuda'", "auto", "eager")
    with pytest.raises(InvalidConfig) as error:
        CALLS[call](LAYERED, LAYERED, config={"coverage": 0.9})
    assert_names(error, "dict", "SampleAttentionConfig")


MLSYS = {
    "coverage": 0.95, "slash_coverage": 0.95, "segment": None, "chunk_tails": 2, "pool": None,
    "spread": False, "probes": None, "outliers": 0, "coverage_at": None,
}  # fmt: skip
NO_SPREAD = {"spread": False, "probes": None, "outliers": 0}
CONFIGS = [
    ({"coverage": 0}, ["coverage", "(0, 1]", "0"]),
    ({"coverage": -0.1}, ["coverage", "(0, 1]", "-0.1"]),
    ({"coverage": 1.01}, ["coverage", "(0, 1]", "1.01"]),
    ({"coverage": float("nan")}, ["coverage", "nan"]),
    ({"coverage": float("inf")}, ["coverage", "inf"]),
    ({"coverage": None}, ["coverage", "None"]),
    ({"coverage": "0.9"}, ["coverage", "'0.9'"]),
    ({"coverage": True}, ["coverage", "True"]),
    ({"coverage": np.float32(1.5)}, ["coverage", "1.5"]),
    ({"coverage": torch.tensor(0.5)}, ["coverage", "tensor"]),
    ({"coverage": np.array(0.5)}, ["coverage", "array"]),
    ({"window": np.float64(12)}, ["window", "integer", "12.0"]),
    ({"window": np.int64(-1)}, ["window", "from 0", "-1"]),
    ({"coverage": Fraction(10**309)}, ["coverage", "(0, 1]"]),
    ({"window": np.bool_(True)}, ["window", "True"]),
    ({"residual": np.bool_(True)}, ["residual", "True or False"]),
    ({"head_coverage": np.array([0.5])}, ["head_coverage", "each query head", "array"]),
    ({"head_coverage": 0.9}, ["head_coverage", "each query head", "0.9"]),
    ({"head_coverage": ()}, ["head_coverage", "each query head", "()"]),
    ({"head_coverage": (0.9, "0.9")}, ["head_coverage", "(0, 1]", "'0.9'"]),
    ({"head_coverage": (0.9, None)}, ["head_coverage", "None"]),
    ({"head_coverage": (0.9, 1)}, ["head_coverage", "below 1"]),
    ({"slash_coverage": 2}, ["slash_coverage", "2"]),
    ({"depth_contrast": 0.5}, ["depth_contrast", "from 1 to 64", "0.5"]),
    ({"depth_contrast": True}, ["depth_contrast", "True"]),
    ({"depth_contrast": "4"}, ["depth_contrast", "'4'"]),
    (
        {**MLSYS, "depth_contrast": 4},
        ["depth_contrast=4", "slash_coverage=0.95", "depth_contrast=1"],
    ),
    ({"guard": 0.0, "held_out": 4}, ["guard", "(0, 1]"]),
    ({"guard": 0.9}, ["guard", "held_out=4"]),
    ({"window_ratio": 1.5}, ["window_ratio", "1.5"]),
    ({"dense_above": 0}, ["dense_above", "0"]),
    ({"segment": 0}, ["segment", "from 1", "0"]),
    ({"segment": 12.0}, ["segment", "integer", "12.0"]),
    ({"segment": 2**40}, ["segment", str(2**30)]),
    ({"row_stride": 0}, ["row_stride", "from 1"]),
    ({"row_stride": 2**70}, ["row_stride", str(2**30)]),
    ({"pool": 0}, ["pool", "from 1"]),
    ({"window": -1}, ["window", "from 0", "-1"]),
    ({"window": 2**31}, ["window", str(2**30)]),
    ({"held_out": -1}, ["held_out", "from 0"]),
    ({"dense_tail": True}, ["dense_tail", "True"]),
    ({"dense_prefix": None}, ["dense_prefix", "None"]),
    ({"row_stride": 24}, ["row_stride=24", "divide", "segment=128"]),
    ({"segment": 256}, ["pool=128", "segment=256", "pooled", "spread=False", "probes=None"]),
    ({"pool": None}, ["pool=None", "segment=128", "pooled", "spread=False"]),
    ({"spread": False}, ["probes=2048", "spread=False", "probes=None"]),
    ({**NO_SPREAD, "pool": 50}, ["pool=50", "divide", "segment=128"]),
    ({**NO_SPREAD, "segment": 192, "pool": None}, ["segment=192", "128", "multiple"]),
    ({"window": 0}, ["window >= 1"]),
    ({**NO_SPREAD, "segment": None}, ["pool", "segment=128", "pool=None"]),
    ({"chunk_tails": 2}, ["chunk_tails", "slash_coverage", "mlsys"]),
    ({"slash_coverage": 0.9}, ["chunk_tails=None", "slash_coverage=0.9"]),
    ({"chunk_tails": 2, "slash_coverage": 0.9}, ["chunk_tails", "segment=None"]),
    ({"key_block": 64}, ["key_block", "chunk_tails", "mlsys"]),
    ({"spread": 1}, ["spread", "True or False", "1"]),
    ({"pool": 32}, ["spread", "pool=segment", "pool=32", "segment=128"]),
    ({"segment": 256, "pool": 256}, ["spread", "at most 128", "segment=256"]),
    ({"segment": None, "pool": None}, ["spread", "segment=None"]),
    ({"spread": False, "probes": 64}, ["probes", "spread=True"]),
    ({"probes": 8}, ["probes", "from 16", "8"]),
    ({"spread": False, "probes": None}, ["outliers=8", "spread=True", "outliers=0"]),
    ({"outliers": 17}, ["outliers=17", "at most 16"]),
    ({"outliers": -1}, ["outliers", "from 0"]),
    ({"outliers": None}, ["outliers", "None"]),
    ({"runs": 0.01}, ["runs=0.01", "1/64"]),
    ({"runs": 1.5}, ["runs", "(0, 1]", "1.5"]),
    ({"coverage_at": 0}, ["coverage_at", "from 1"]),
    ({**NO_SPREAD, "segment": None, "pool": None}, ["coverage_at", "segment=128", "=None"]),
]


@pytest.mark.parametrize(("fields", "words"), CONFIGS, ids=[str(f) for f, _ in CONFIGS])
def test_config_values(fields, words):
    with pytest.raises(InvalidConfig) as error:
        SampleAttentionConfig(**fields)
    assert_names(error, *words)
    with pytest.raises(InvalidConfig):
        SampleAttentionConfig.preset("default", **fields)


def test_unknown_fields_and_presets():
    with pytest.raises(InvalidConfig) as error:
        SampleAttentionConfig.preset("default", alpha=0.9)
    assert_names(error, "alpha", "SampleAttentionConfig")
    with pytest.raises(InvalidConfig) as error:
        SampleAttentionConfig.preset("v2")
    assert_names(error, "'v2'", "default, fast, mlsys, paper, pooled")
    with pytest.raises(TypeError):
        SampleAttentionConfig(0.9)


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


PACKED = [
    ((ints(1, 5),), ["cu_seqlens_q", "start at 0", "[1, 5]"]),
    ((ints(0, 5, 5),), ["cu_seqlens_q", "grow", "[0, 5, 5]"]),
    ((ints(0, 5, 3),), ["cu_seqlens_q", "grow"]),
    ((ints(0),), ["cu_seqlens_q", "at least 2"]),
    ((ints(),), ["cu_seqlens_q", "at least 2"]),
    ((ints(0, 5)[None],), ["cu_seqlens_q", "1-D", "(1, 2)"]),
    ((torch.tensor([0.0, 5.0]),), ["cu_seqlens_q", "float32"]),
    ((torch.tensor([False, True]),), ["cu_seqlens_q", "bool"]),
    (([0, 5],), ["cu_seqlens_q", "list"]),
    ((ints(0, 5), ints(0, 5, 9)), ["1 sequences", "2", "same"]),
    ((ints(0, 5), ints(0, 4)), ["sequence 0", "Sq=5", "Skv=4"]),
    ((ints(0, 5), ints(0, 0)), ["cu_seqlens_k", "grow"]),
    ((torch.tensor([0, 2**31 - 5, 2**31 + 20]),), ["sequence 1", "2147483668", "int32"]),
    ((ints(0, 5), torch.tensor([0, 2**31])), ["sequence 0", "Skv=2147483648", "2147483647"]),
    ((ints(0, 5).to("meta"),), ["cu_seqlens_q", "meta"]),
    ((ints(0, 5).to_sparse(),), ["cu_seqlens_q", "torch.sparse_coo"]),
]


@pytest.mark.parametrize(("totals", "words"), PACKED, ids=range(len(PACKED)))
def test_running_totals(totals, words):
    with pytest.raises(InvalidInput) as error:
        Sequences.packed_from(*totals)
    assert_names(error, *words)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (ints(3, 0), ["sequence 1", "0 keys", "1 to 8"]),
        (ints(9), ["sequence 0", "9 keys", "1 to 8"]),
        (ints(-2), ["sequence 0", "-2 keys"]),
        (ints(), ["kv_lens", "at least 1"]),
        (ints(3)[None], ["kv_lens", "1-D"]),
        (torch.tensor([2.5]), ["kv_lens", "float32"]),
        ([3], ["kv_lens", "list"]),
        (ints(3).to("meta"), ["kv_lens", "meta"]),
    ],
    ids=str,
)
def test_padded_lengths(lengths, words):
    with pytest.raises(InvalidInput) as error:
        Sequences.left_padded(lengths, 8, 8)
    assert_names(error, *words)


@pytest.mark.parametrize("length", [None, 8.0, 0, -1, True, "8"], ids=repr)
def test_lengths_of_padded_tensors(length):
    for lengths, name in (((length, 8), "q_len"), ((8, length), "kv_len")):
        with pytest.raises(InvalidInput) as error:
            Sequences.left_padded(ints(3), *lengths)
        assert_names(error, name, "integer from 1", repr(length))
    assert Sequences.left_padded(ints(3), np.int64(8), np.int32(8)).rows() == [(0, 5, 3, 5, 3)]


def test_sequences_that_do_not_fit_the_tensors():
    q, k, v = make_qkv(8, 10, batch=2, head_dim=4)
    cases = [
        (Sequences.left_padded(ints(10, 12), 8, 12), ["12 tokens", "k", "10"]),
        (Sequences.left_padded(ints(10, 3), 9, 10), ["9 tokens", "q", "8"]),
        (Sequences.left_padded(ints(10), 8, 10), ["1 sequence", "batch of 2"]),
        (Sequences.left_padded(ints(10, 3, 3), 8, 10), ["batch row 2 of 2"]),
        (Sequences.left_padded(ints(3, 3), 8, 12), ["key 12", "10"]),
        (Sequences.packed_from(ints(0, 8)), ["q", "(2, 2, 8, 4)", "[T, H, D]"]),
    ]
    for sequences, words in cases:
        with pytest.raises(InvalidInput) as error:
            sa.sample_attention(q, k, v, sequences=sequences)
        assert_names(error, *words)
    flat = q[0].transpose(0, 1)
    for totals, words in [((ints(0, 5, 9),), ["query 9", "8"]), ((ints(0, 9),), ["9 tokens"])]:
        with pytest.raises(InvalidInput) as error:
            sa.sample_attention(flat, flat, flat, sequences=Sequences.packed_from(*totals))
        assert_names(error, *words)
    meta = Sequences.left_padded(ints(10, 3), 8, 10)
    meta = Sequences(meta.table.to("meta"), meta.max_q_len, meta.max_kv_len)
    with pytest.raises(InvalidInput) as error:
        sa.sample_attention(q, k, v, sequences=meta)
    assert_names(error, "meta", "cpu")


def table(*rows, dtype=torch.int32):
    return torch.tensor(rows, dtype=dtype)


PAGED = {
    "too few sequences": ((ints(0, 5), ints(5, 6), table([0]), 8), ["1 sequences", "kv_lens 2"]),
    "too few rows": ((ints(0, 5, 9), ints(5, 6), table([0]), 8), ["1 row", "2", "one row per"]),
    "short row": ((ints(0, 5, 9), ints(8, 9), table([0], [1]), 8), ["sequence 1", "9", "1 page"]),
    "more queries": ((ints(0, 5), ints(4), table([0]), 8), ["sequence 0", "Sq=5", "Skv=4"]),
    "no keys": ((ints(0, 5), ints(0), table([0]), 8), ["sequence 0", "Skv=0"]),
    "int64": ((ints(0, 5), ints(5), table([0]).long(), 8), ["page_table", "int32", "torch.int64"]),
    "1-D": ((ints(0, 5), ints(5), ints(0), 8), ["page_table", "[N, max_pages]", "(1,)"]),
    "a list": ((ints(0, 5), ints(5), [[0]], 8), ["page_table", "list"]),
    "columns first": (
        (ints(0, 5, 9), ints(5, 6), table([0, 1], [2, 3]).T, 8), ["page_table", "strides"]
    ),
    "page size 0": ((ints(0, 5), ints(5), table([0]), 0), ["page_size", "from 1", "0"]),
    "no page size": ((ints(0, 5), ints(5), table([0]), 8.0), ["page_size", "8.0"]),
    "beyond int32": (
        (ints(0, 5), torch.tensor([2**31]), table([0] * 2**10), 2**21), ["Skv=2147483648"]
    ),
    "lengths": ((ints(0, 5), torch.tensor([5.0]), table([0]), 8), ["kv_lens", "float32"]),
    "totals": ((ints(1, 5), ints(5), table([0]), 8), ["cu_seqlens_q", "start at 0"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), PAGED.values(), ids=PAGED)
def test_page_tables(arguments, words):
    with pytest.raises(InvalidInput) as error:
        Sequences.paged(*arguments)
    assert_names(error, *words)


@pytest.mark.parametrize(
    ("cache", "pages", "words"),
    [
        (zeros(3, 4, 2, 4), [0, 1], ["pages of 4 tokens", "page_size=8", "[P, page_size, Hkv, D]"]),
        (zeros(24, 2, 4), [0, 1], ["k", "(24, 2, 4)", "[P, page_size, Hkv, D]"]),
        (zeros(3, 8, 3, 4), [0, 1], ["2 query heads", "3"]),
        (zeros(3, 8, 2, 6), [0, 1], ["head dims", "4", "6"]),
        (zeros(3, 8, 2, 4), [0, 3], ["pages 0 to 3", "0 to 2"]),
        (zeros(3, 8, 2, 4), [-1, 1], ["pages -1 to 1", "0 to 2"]),
        (zeros(0, 8, 2, 4), [0, 1], ["k", "empty"]),
    ],
    ids=str,
)
def test_caches_that_do_not_fit_their_page_table(cache, pages, words):
    sequences = Sequences.paged(ints(0, 5), ints(12), table([*pages, 99]), 8)
    with pytest.raises(InvalidInput) as error:
        sa.sample_attention(zeros(5, 2, 4), cache, cache, sequences=sequences)
    assert_names(error, *words)
    good = zeros(3, 8, 2, 4)
    with pytest.raises(InvalidInput) as error:
        sa.select(
            zeros(4, 2, 4), good, sequences=Sequences.paged(ints(0, 5), ints(12), table([0, 1]), 8)
        )
    assert_names(error, "5 tokens", "q", "4")


def test_plan_for_another_problem():
    q, k, v = make_qkv(30, 40, batch=2, num_heads=4, num_kv_heads=2)
    plan = sa.select(q, k)
    others = {
        "heads": make_qkv(30, 40, batch=2, num_heads=2),
        "batch": make_qkv(30, 40, batch=3, num_heads=4),
        "more queries": make_qkv(40, 40, batch=2, num_heads=4),
        "more keys": make_qkv(30, 60, batch=2, num_heads=4),
        "fewer keys": make_qkv(30, 35, batch=2, num_heads=4),
        "fewer queries": make_qkv(20, 40, batch=2, num_heads=4),
        "both longer": make_qkv(60, 80, batch=2, num_heads=4),
    }
    for name, other in others.items():
        with pytest.raises(PlanMismatch) as error:
            sa.attend(*other, plan)
        assert_names(error, "the plan covers 2 sequence(s)", "4 heads", "the problem is", "select")
        assert re.search(r"N=\d H=\d/\d", str(error.value)), name
    packed = q[0].transpose(0, 1)
    with pytest.raises(SampleAttentionError):
        sa.attend(packed, packed, packed, plan)
    with pytest.raises(PlanMismatch) as error:
        plan.retained_mass(sa.attend(q, k, v, plan).lse)
    assert_names(error, "held_out=4")


def test_packed_plan_for_another_packing():
    q, k, v = (x[0].transpose(0, 1) for x in make_qkv(40))
    plan = sa.select(q, k, sequences=Sequences.packed_from(ints(0, 20, 40)))
    with pytest.raises(PlanMismatch):
        sa.attend(q[:, :1], k[:, :1], v[:, :1], plan)
    with pytest.raises(SampleAttentionError):
        sa.attend(q[:30], k[:30], v[:30], plan)


def test_tensors_without_data_are_refused_with_every_reason():
    x = LAYERED.to("meta")
    for name in ("auto", "eager"):
        with pytest.raises(UnsupportedProblem) as error:
            sa.select(x, x, backend=name)
        assert_names(error, "N=1 H=2/2 Sq<=8 Skv<=8 D=4 float32 on meta", "eager: ", "meta device")
        assert tuple(error.value.verdicts) == tuple(BACKENDS)


def test_explain_names_what_runs_where_no_backend_could():
    x = LAYERED.to("meta")
    found = sa.explain(x, x, x)
    assert not found.route.sparse
    assert "meta device" in found.verdicts["eager"]
    assert sa.sample_attention(x, x, x).is_meta
    with pytest.raises(UnsupportedProblem, match="eager: "):
        sa.explain(x, x, x, backend="eager")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tuned.load(3),
        lambda: Tuned.from_json(None),
        lambda: SampleAttentionConfig.from_json(None),
        lambda: SampleAttentionConfig.preset(["default"]),
        lambda: Interval(0, "default"),
        lambda: Interval(1.5, SampleAttentionConfig()),
    ],
)
def test_what_makes_configurations(make):
    with pytest.raises(InvalidConfig):
        make()


def test_every_error_is_ours_and_a_standard_one():
    assert issubclass(InvalidInput, SampleAttentionError | ValueError)
    assert issubclass(InvalidConfig, ValueError)
    assert issubclass(PlanMismatch, ValueError)
    assert issubclass(MissingExtra, ImportError)
    assert issubclass(UnsupportedProblem, NotImplementedError)
    error = MissingExtra("matplotlib", "plot")
    assert "pip install '.[plot]'" in str(error)
    assert (error.module, error.extra) == ("matplotlib", "plot")
