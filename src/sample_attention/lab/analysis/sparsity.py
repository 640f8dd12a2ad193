"""Sparsity degree SD: how much of the attention could be dropped by a method that knew all of it.

    SD(c) = 1 - sum_i n_i / sum_i (visible keys of row i),
    n_i = the fewest keys of row i whose probabilities reach c

An upper bound of what any selection can drop at the coverage c; the paper's motivation (its
section 3 and appendix A).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InvalidInput
from ...problem import Problem, Sequences
from .probabilities import check_rows, row_probabilities, sample_rows


def sparsity_degree(
    q: Tensor, k: Tensor, coverage: float = 0.95, *,
    rows: Tensor | None = None, num_rows: int = 128, seed: int = 0, scale: float | None = None,
    sequences: Sequences | None = None,
) -> Tensor:  # fmt: skip
    """The largest share of pairs that can be dropped while every row keeps `coverage`.

    Args:
        q: `[B, H, Sq, D]`, or `[T, H, D]` with packed `sequences`.
        k: `[B, Hkv, Skv, D]` or `[T, Hkv, D]`.
        coverage: probability that each row keeps, in (0, 1].
        rows: int64 `[R]`, query rows of every sequence to look at; None: random ones.
        num_rows: how many random rows.
        seed: of the random rows.
        scale: multiplies q.k; None: `D ** -0.5`.
        sequences: where sequences lie; None: one per batch row.

    Returns:
        fp64 `[N, H]`; memory is linear in the prompt.

    Raises:
        InvalidInput: a coverage outside (0, 1], or rows outside a sequence.
    """
    if not 0 < coverage <= 1:
        raise InvalidInput(f"coverage is {coverage}; it must lie in (0, 1]")
    problem = Problem.of(q, k, k, sequences)
    table = problem.sequences.rows()
    result = torch.zeros(len(table), problem.num_heads, dtype=torch.float64, device=q.device)
    for n, (_, _, q_len, _, kv_len) in enumerate(table):
        chosen = sample_rows(q_len, num_rows, seed) if rows is None else check_rows(rows, q_len)
        visible = int((chosen + (kv_len - q_len) + 1).sum())
        for h in range(problem.num_heads):
            parts = row_probabilities(q, k, problem, chosen, n=n, h=h, scale=scale)
            needed = sum(int(_fewest_keys(prob, coverage).sum()) for _, prob in parts)
            result[n, h] = 1 - needed / visible
    return result


def _fewest_keys(prob: Tensor, coverage: float) -> Tensor:
    """Per row, how many of the largest probabilities reach the coverage: int64 `[R]`."""
    reached = prob.sort(dim=-1, descending=True).values.cumsum(-1, dtype=torch.float64)
    short = reached < coverage * reached[:, -1:]  # of the row's own sum, which rounding moves off 1
    return short.sum(-1) + 1
