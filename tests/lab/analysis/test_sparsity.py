"""Sparsity degree against brute force."""

import pytest
import torch

import sample_attention as sa
from sample_attention import reference
from sample_attention.errors import InvalidInput
from sample_attention.lab.analysis import sparsity_degree


def brute_force(q, k, coverage, rows):
    """For each row try one key more until the coverage is reached."""
    prob = reference.probabilities(q, k)[:, rows]
    offset = k.shape[1] - q.shape[1]
    degrees = []
    for head in prob:
        kept = 0
        for row in head:
            ordered = sorted(row.tolist(), reverse=True)
            kept += next(n for n in range(1, len(row) + 1) if sum(ordered[:n]) >= coverage)
        degrees.append(1 - kept / sum(int(i) + offset + 1 for i in rows))
    return torch.tensor(degrees, dtype=torch.float64)


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.9, 0.95])
def test_equals_brute_force(coverage):
    q = 2 * torch.randn(2, 4, 40, 8, dtype=torch.float64)
    k = torch.randn(2, 2, 50, 8, dtype=torch.float64)
    rows = torch.tensor([0, 7, 39])
    expected = torch.stack([brute_force(q[n], k[n], coverage, rows) for n in range(2)])
    torch.testing.assert_close(sparsity_degree(q, k, coverage, rows=rows), expected)


def test_uniform_attention_keeps_its_coverage():
    q = torch.zeros(1, 1, 100, 8, dtype=torch.float64)
    rows = torch.tensor([99])
    assert sparsity_degree(q, q, 0.595, rows=rows).item() == 1 - 60 / 100


def test_packed_sequences_are_measured_apart():
    q = torch.randn(90, 2, 8, dtype=torch.float64)
    packed = sa.Sequences.packed_from(torch.tensor([0, 30, 90], dtype=torch.int32))
    found = sparsity_degree(q, q, sequences=packed, num_rows=90)
    for n, part in enumerate((q[:30], q[30:])):
        alone = part.transpose(0, 1)[None]
        torch.testing.assert_close(found[n], sparsity_degree(alone, alone, num_rows=90)[0])


def test_more_coverage_is_never_sparser():
    q = torch.randn(1, 2, 64, 8)
    degrees = torch.stack([sparsity_degree(q, q, c)[0] for c in (0.2, 0.5, 0.8, 0.95, 1.0)])
    assert bool((degrees.diff(dim=0) <= 0).all())
    assert bool((degrees[-1] >= 0).all())


@pytest.mark.parametrize("coverage", [0, -1, 1.01, float("nan")])
def test_bad_coverage_is_refused(coverage):
    q = torch.randn(1, 1, 8, 8)
    with pytest.raises(InvalidInput, match="coverage"):
        sparsity_degree(q, q, coverage)
