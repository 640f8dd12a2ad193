"""A paged cache changes nothing but where keys and values lie."""

from dataclasses import replace

import pytest
import torch

import sample_attention as sa
from sample_attention import SampleAttentionConfig, Sequences
from sample_attention.dense import dense_with_lse, limited
from sample_attention.lab.analysis import measure_retained_mass
from sample_attention.problem import Problem, as_batched, keys_of
from sample_attention.testing import assert_matches_oracle, make_pages, make_qkv

PAGE_SIZES = [1, 5, 16, 256]
Q_ENDS, KV_ENDS = torch.tensor([0, 130, 131, 150]), torch.tensor([0, 300, 301, 390])
CONFIGS = {
    "segments": SampleAttentionConfig.preset(
        "pooled", coverage=0.6, segment=32, row_stride=8, pool=8, window=8, dense_prefix=0,
        dense_tail=0, held_out=4,
    ),
    "spread": SampleAttentionConfig(
        coverage=0.6, segment=32, row_stride=8, pool=32, spread=True, probes=16, window=8,
        dense_prefix=0, dense_tail=0, held_out=4,
    ),
    "paper": SampleAttentionConfig.preset("paper", coverage=0.7),
    "mlsys": SampleAttentionConfig.preset("mlsys", coverage=0.5, slash_coverage=0.5),
}  # fmt: skip


def packed_and_paged(page_size, q_ends=Q_ENDS, kv_ends=KV_ENDS):
    """q, k, v and sequences of the same content, packed and in pages."""
    sizes = int(q_ends[-1]), int(kv_ends[-1])
    q, k, v = (x[0].transpose(0, 1) for x in make_qkv(*sizes, num_heads=4, num_kv_heads=2))
    packed = Sequences.packed_from(q_ends, kv_ends)
    return (q, k, v, packed), (q, *make_pages(k, v, packed, page_size))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_select(select, config, page_size):
    (q, k, _, packed), (_, k_pages, _, paged) = packed_and_paged(page_size)
    expected = select(q, k, config, sequences=packed)
    plan = select(q, k_pages, config, sequences=paged)
    assert torch.equal(plan.indices, expected.indices)
    assert torch.equal(plan.counts, expected.counts)
    assert torch.equal(plan.dense, expected.dense)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_attend(attend, config, page_size):
    (q, k, v, packed), (_, k_pages, v_pages, paged) = packed_and_paged(page_size)
    plan = sa.select(q, k, config, sequences=packed, backend="eager")
    expected = attend(q, k, v, plan)
    plan = replace(plan, sequences=paged)
    result = attend(q, k_pages, v_pages, plan)
    assert_matches_oracle(*result, q, k_pages, v_pages, plan)
    assert torch.equal(result.out, expected.out)
    assert torch.equal(result.lse, expected.lse)


@pytest.mark.parametrize("guard", [None, 0.6, 1.0])
@pytest.mark.parametrize("sparse", [True, False])
def test_whole_calls(request, sparse, guard):
    if sparse:
        request.getfixturevalue("always_sparse")
    config = replace(CONFIGS["segments"], guard=guard)
    (q, k, v, packed), (_, k_pages, v_pages, paged) = packed_and_paged(16)
    expected = sa.measured_attention(q, k, v, config, sequences=packed)
    result = sa.measured_attention(q, k_pages, v_pages, config, sequences=paged)
    assert result.route == expected.route
    assert result.route.sparse is sparse
    assert torch.equal(result.out, expected.out)
    out = sa.sample_attention(q, k_pages, v_pages, config, sequences=paged)
    assert torch.equal(out, expected.out)
    if sparse:
        assert torch.equal(result.lse, expected.lse)
        torch.testing.assert_close(
            result.retained_mass, expected.retained_mass, rtol=0, atol=0, equal_nan=True
        )


def test_decoding():
    ends = torch.tensor([0, 1, 2]), torch.tensor([0, 33, 100])
    (q, k, v, packed), (_, k_pages, v_pages, paged) = packed_and_paged(16, *ends)
    expected = sa.sample_attention(q, k, v, sequences=packed)
    assert torch.equal(sa.sample_attention(q, k_pages, v_pages, sequences=paged), expected)


@pytest.mark.parametrize("limits", [{"window": 20}, {"softcap": 3.0}, None], ids=str)
def test_dense_attention_with_lse(limits):
    def call(q, k, v, sequences):
        problem = Problem.of(q, k, v, sequences)
        views = [as_batched(x, problem) for x in (q, k, v)]
        if limits is None:
            return dense_with_lse(*views, problem, 0.3)
        return limited(*views, problem, 0.3, **limits)

    packed, paged = packed_and_paged(5)
    for given, wanted in zip(call(*paged), call(*packed), strict=True):
        assert torch.equal(given, wanted)


def test_retained_mass_is_measured_through_the_pages():
    (q, k, _, packed), (_, k_pages, _, paged) = packed_and_paged(5)
    for n in range(3):
        mass = [
            measure_retained_mass(q, keys, sa.select(q, keys, sequences=sequences), n=n).mass
            for keys, sequences in ((k, packed), (k_pages, paged))
        ]
        assert torch.equal(*mass)


def test_chunks_of_a_prompt_in_one_cache():
    """Each chunk of whole segments, on the pages filled so far, gives its part of one call."""
    length, chunk, config = 320, 64, CONFIGS["segments"]
    ends = torch.tensor([0, length])
    _, (q, k, v, whole) = packed_and_paged(16, ends, ends)
    plan = sa.select(q, k, config, sequences=whole)
    parts = []
    for stop in range(chunk, length + 1, chunk):
        rows, lengths = torch.tensor([0, chunk]), torch.tensor([stop])
        sequences = Sequences.paged(rows, lengths, whole.page_table, 16)
        queries = q[stop - chunk : stop]
        part = sa.select(queries, k, config, sequences=sequences)
        for h in range(4):
            mask = plan.to_dense(0, h)[stop - chunk : stop, :stop]
            assert torch.equal(part.to_dense(0, h), mask)
        parts.append(sa.attend(queries, k, v, part).out)
    assert_matches_oracle(torch.cat(parts), None, q, k, v, plan)


def test_keys_of_one_sequence():
    (_, k, _, packed), (_, k_pages, _, paged) = packed_and_paged(5)
    for n in range(3):
        keys = keys_of(k.transpose(0, 1)[None], packed, n)
        assert torch.equal(keys_of(k_pages.transpose(1, 2), paged, n), keys)
        assert torch.equal(keys_of(k_pages.transpose(1, 2)[:, 1], paged, n), keys[1])


def test_any_strides_of_the_cache():
    _, (q, k, v, paged) = packed_and_paged(16)
    plan = sa.select(q, k, sequences=paged)
    expected = sa.attend(q, k, v, plan)
    for stride in (
        torch.Tensor.contiguous,
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),  # heads before slots
        lambda x: torch.stack([x, x.flip(0)])[0],
    ):
        assert torch.equal(sa.attend(q, stride(k), stride(v), plan).out, expected.out)


def test_sequences_are_known_on_the_host():
    (_, _, _, packed), (_, _, _, paged) = packed_and_paged(16)
    padded = Sequences.left_padded(torch.tensor([5, 3]), 4, 5)
    x = torch.zeros(2, 1, 3, 4)
    for sequences in (packed, paged, padded, Problem.of(x, x, x).sequences):
        assert sequences.rows() == [tuple(row) for row in sequences.table.tolist()]
        assert sequences.rows() == list(sequences.host_rows)
    assert paged.rows() == [(0, 0, 130, 0, 300), (0, 130, 1, 0, 1), (0, 131, 19, 0, 89)]
    assert "in pages of 16" in str(Problem.of(*packed_and_paged(16)[1]))
