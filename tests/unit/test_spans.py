"""Long calls are computed in spans of rows that change nothing."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sample_attention import SampleAttentionConfig, attend, sample_attention, select
from sample_attention.problem import Problem
from sample_attention.routing import row_spans as spans
from sample_attention.testing import assert_matches_oracle, make_qkv

CONFIG = SampleAttentionConfig.preset(
    "pooled", dense_prefix=0, dense_tail=0, window=16, segment=32, pool=8, row_stride=4,
    coverage=0.8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _small_problems_are_cut(monkeypatch):
    monkeypatch.setattr(spans, "COLUMNS_PER_BYTE", 0)


@pytest.mark.parametrize(("q_len", "kv_len"), [(300, 300), (111, 333)], ids=str)
def test_spans_cover_the_rows_and_end_at_segments(monkeypatch, q_len, kv_len):
    monkeypatch.setattr(spans, "COLUMNS_AT_ONCE", 1000)
    q, k, _ = make_qkv(q_len, kv_len)
    parts = spans.row_spans(Problem.of(q, k, k), CONFIG)
    assert len(parts) > 2
    assert [i for part in parts for i in part] == list(range(q_len))
    assert all((kv_len - q_len + part.stop) % 32 == 0 for part in parts[:-1])


def test_spans_bound_the_columns(monkeypatch):
    monkeypatch.setattr(spans, "COLUMNS_AT_ONCE", 40_000)
    q, k, _ = make_qkv(2000)
    for part in spans.row_spans(Problem.of(q, k, k), CONFIG):
        assert -(-len(part) // 32) * part.stop * q.shape[1] <= 40_000


@pytest.mark.parametrize("change", [{"window_ratio": 0.1}, {"segment": None, "dense_tail": 5}])
def test_rules_that_know_the_end_are_not_cut(monkeypatch, change):
    monkeypatch.setattr(spans, "COLUMNS_AT_ONCE", 1000)
    q, k, _ = make_qkv(300)
    fields = {"dense_prefix": 0, "dense_tail": 0, "pool": None, **change}
    config = SampleAttentionConfig.preset("pooled", **fields)
    assert spans.row_spans(Problem.of(q, k, k), config) == [range(300)]


@pytest.mark.usefixtures("always_sparse")
def test_a_call_in_spans_equals_one_in_whole(monkeypatch):
    q, k, v = make_qkv(111, 333, num_heads=4, num_kv_heads=2)
    plan = select(q, k, CONFIG)
    whole = attend(q, k, v, plan).out
    monkeypatch.setattr(spans, "COLUMNS_AT_ONCE", 3000)
    out = sample_attention(q, k, v, CONFIG)
    assert_matches_oracle(out, None, q, k, v, plan)
    assert torch.equal(out, whole)


@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize("tail", [5, 70])
def test_a_dense_tail_is_that_of_the_call(monkeypatch, tail):
    q, k, v = make_qkv(111, 333, num_heads=4, num_kv_heads=2)
    config = replace(CONFIG, dense_tail=tail)
    monkeypatch.setattr(spans, "COLUMNS_AT_ONCE", 3000)
    out = sample_attention(q, k, v, config)
    assert_matches_oracle(out, None, q, k, v, select(q, k, config))


class Joined(TorchDispatchMode):
    """Shapes of what is made by joining tensors."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default:
            self.shapes.append(result.shape)
        return result


@pytest.mark.usefixtures("always_sparse")
def test_the_output_is_not_joined_of_a_second_one(monkeypatch):
    q, k, v = make_qkv(300)
    monkeypatch.setattr(spans, "COLUMNS_AT_ONCE", 3000)
    with Joined() as joined:
        out = sample_attention(q, k, v, CONFIG)
    assert joined.shapes
    assert out.shape not in joined.shapes


def test_large_problems_take_larger_spans(monkeypatch):
    monkeypatch.setattr(spans, "COLUMNS_AT_ONCE", 1000)
    q, k, _ = make_qkv(300)
    few = spans.row_spans(Problem.of(q, k, k), CONFIG)
    monkeypatch.setattr(spans, "COLUMNS_PER_BYTE", 1 / 16)
    assert len(spans.row_spans(Problem.of(q, k, k), CONFIG)) < len(few)
