"""Sequences of a batch, run as a batch of their own: the same bits, and no copy."""

import pytest
import torch

import sample_attention as sa
from sample_attention import Sequences
from sample_attention.dense import dense_with_lse
from sample_attention.errors import InvalidInput
from sample_attention.problem import Problem, SequenceRow, as_batched, keys_of, part_of, rows_of
from sample_attention.testing import make_pages, make_qkv

CONFIG = sa.preset(
    "pooled",
    coverage=0.6,
    segment=32,
    sample_stride=8,
    rows=8,
    window=8,
    dense_prefix=0,
    dense_tail=0,
)
Q_ENDS, KV_ENDS = torch.tensor([0, 130, 131, 150, 190]), torch.tensor([0, 300, 301, 390, 440])
PARTS = [(0, 4)], [(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 4)], [(0, 1), (1, 4)]


def batch_of(kind):
    """q, k, v and sequences of four sequences."""
    shape = {"num_heads": 4, "num_kv_heads": 2, "dtype": torch.float64}
    if kind in ("uniform", "padded"):
        q, k, v = make_qkv(100, 150, batch=4, **shape)
        if kind == "uniform":
            return q, k, v, Problem.of(q, k, v).sequences
        return q, k, v, Sequences.left_padded(torch.tensor([150, 120, 37, 1]), 100, 150)
    q, k, v = (x[0].transpose(0, 1) for x in make_qkv(190, 440, **shape))
    packed = Sequences.packed_from(Q_ENDS, KV_ENDS)
    if kind == "packed":
        return q, k, v, packed
    if kind == "gaps":  # the first and the third token of q belong to no sequence
        rows = [(0, 1, 1, 0, 20), (0, 3, 40, 20, 90), (0, 43, 60, 110, 300), (0, 103, 30, 410, 30)]
        rows = [SequenceRow(*row) for row in rows]
        return q, k, v, Sequences._from_rows(rows, q.device, packed=True)
    return q, *make_pages(k, v, packed, 16)


def sparse(q, k, v, sequences):
    plan = sa.select(q, k, CONFIG, sequences=sequences, backend="eager")
    return sa.attend(q, k, v, plan, backend="eager")


def dense(q, k, v, sequences):
    problem = Problem.of(q, k, v, sequences)
    batched = (as_batched(x, problem) for x in (q, k, v))
    out, lse = dense_with_lse(*batched, problem, problem.scale(None))
    return (out[0].transpose(0, 1), lse[0]) if sequences.packed else (out, lse)


@pytest.mark.parametrize("kind", ["packed", "paged", "padded", "uniform", "gaps"])
def test_the_batches_are_sparse(kind):
    q, k, _, sequences = batch_of(kind)
    assert sa.select(q, k, CONFIG, sequences=sequences, backend="eager").density().mean() < 1


@pytest.mark.parametrize("attention", [sparse, dense])
@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("kind", ["packed", "paged", "padded", "uniform"])
def test_parts_put_together_are_the_whole(kind, parts, attention):
    q, k, v, sequences = batch_of(kind)
    expected = attention(q, k, v, sequences)
    results = [torch.full_like(x, torch.nan) for x in expected]
    for first, stop in parts:
        part = attention(*part_of(q, k, v, sequences, first, stop), sequences.part(first, stop))
        for result, x in zip(results, part, strict=True):
            rows_of(result, sequences, first, stop).copy_(x)
    for result, x in zip(results, expected, strict=True):
        assert torch.equal(result, x)


@pytest.mark.parametrize("attention", [sparse, dense])
def test_a_part_with_gaps_is_computed_in_the_whole_tensors(attention):
    q, k, v, sequences = batch_of("gaps")
    expected = attention(q, k, v, sequences)
    assert sequences.cut(0, 2) is None
    first = attention(*part_of(q, k, v, sequences, 0, 2), sequences.part(0, 2))
    assert rows_of(first[0], sequences, 0, 2) is first[0]
    second = attention(*part_of(q, k, v, sequences, 2, 4), sequences.part(2, 4))
    results = [x.clone() for x in first]
    for result, x in zip(results, second, strict=True):
        rows_of(result, sequences, 2, 4).copy_(x)
    for result, x in zip(results, expected, strict=True):
        assert torch.equal(result, x)


@pytest.mark.parametrize("kind", ["packed", "paged", "padded", "uniform", "gaps"])
def test_a_part_says_where_its_sequences_lie(kind):
    q, k, v, sequences = batch_of(kind)
    part, views = sequences.part(1, 3), part_of(q, k, v, sequences, 1, 3)
    problem, whole = Problem.of(*views, part), Problem.of(q, k, v, sequences)
    assert part.rows() == [tuple(row) for row in part.table.tolist()]
    assert (part.max_q_len, part.max_kv_len) == (
        max(row[2] for row in part.rows()), max(row[4] for row in part.rows())
    )  # fmt: skip
    for n in range(2):
        mine = keys_of(as_batched(views[1], problem), part, n)
        assert torch.equal(mine, keys_of(as_batched(k, whole), sequences, n + 1))
    for view, x in zip(views, (q, k, v), strict=True):
        assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_the_totals_of_a_part_are_those_of_its_own_tensors():
    q, k, v, sequences = batch_of("packed")
    part = sequences.part(1, 3)
    alone = Sequences.packed_from(*(x[1:4] - x[1] for x in (Q_ENDS, KV_ENDS)))
    assert torch.equal(part.totals, alone.totals)
    assert torch.equal(part.table, alone.table)
    assert part.total_q_len == alone.total_q_len == len(part_of(q, k, v, sequences, 1, 3)[0])
    assert part.host_rows == alone.host_rows


def test_rows_that_only_a_device_knows_are_not_asked_for():
    """Tensors of the meta device hold nothing to read."""
    given = batch_of("packed")[3]
    table, totals = given.table.to("meta"), given.totals.to("meta")
    sequences = Sequences(table, 130, 300, packed=True, total_q_len=190, totals=totals)
    q, k, v = (torch.empty(n, 2, 16, device="meta") for n in (190, 440, 440))
    assert all(x is y for x, y in zip(part_of(q, k, v, sequences, 1, 3), (q, k, v), strict=True))
    part = sequences.part(1, 3)
    assert (part.host_rows, part.totals, part.total_q_len) == (None, None, None)
    assert (len(part.table), part.max_q_len, part.max_kv_len) == (2, 130, 300)


def test_host_rows_suffice_for_a_device():
    """Nothing is read from tensors, which lie on the meta device."""
    given = batch_of("packed")[3]
    sequences = Sequences(
        given.table.to("meta"), 130, 300, packed=True, host_rows=given.host_rows, total_q_len=190,
        totals=given.totals.to("meta"),
    )  # fmt: skip
    assert sequences.part(1, 3).host_rows == given.part(1, 3).host_rows
    assert sequences.part(1, 3).totals.shape == (2, 3)
    q, k, v = (torch.empty(n, 2, 16, device="meta") for n in (190, 440, 440))
    assert [len(x) for x in part_of(q, k, v, sequences, 1, 3)] == [20, 90, 90]


@pytest.mark.parametrize("ends", [(-1, 2), (2, 2), (3, 2), (0, 5)], ids=str)
def test_sequences_that_are_none_are_refused(ends):
    q, k, v, sequences = batch_of("packed")
    with pytest.raises(InvalidInput, match="accepted: 0 <= first < stop <= 4"):
        sequences.part(*ends)
    with pytest.raises(InvalidInput, match="accepted: 0 <= first < stop <= 4"):
        part_of(q, k, v, sequences, *ends)


def test_batch_rows_in_any_order_have_parts():
    given = batch_of("padded")[3]
    sequences = Sequences._from_rows(given.rows()[::-1], given.table.device, packed=False)
    assert sequences.cut(0, 2) == (slice(2, 4), slice(2, 4))
    assert [row[0] for row in sequences.part(0, 2).rows()] == [1, 0]
