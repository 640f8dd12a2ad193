"""Retained mass of a plan: the dense probability of the pairs it computes, exact on chosen rows.

mass_i = sum_j P_ij [pair (i, j) is computed],   CRA = min_i mass_i
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...plan import StripePlan
from ...problem import Problem
from .probabilities import check_rows, row_probabilities, sample_rows


@dataclass(frozen=True)
class RetainedMass:
    """Retained mass of one sequence, per head and row.

    Attributes:
        rows: int64 `[R]`, query rows within the call.
        mass: fp64 `[H, R]`.
    """

    rows: Tensor
    mass: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over the rows: fp64 `[H]`."""
        return self.mass.mean(-1)

    @property
    def p5(self) -> Tensor:
        """5th percentile over the rows: fp64 `[H]`."""
        return self.mass.quantile(0.05, dim=-1)

    @property
    def cra(self) -> Tensor:
        """Minimum over the rows, the paper's cumulative residual attention: fp64 `[H]`."""
        return self.mass.amin(-1)


def measure_retained_mass(
    q: Tensor, k: Tensor, plan: StripePlan, *,
    rows: Tensor | None = None, num_rows: int = 256, seed: int = 0, n: int = 0,
    scale: float | None = None,
) -> RetainedMass:  # fmt: skip
    """Measure what a plan keeps, without trusting anything that made the plan.

    Args:
        q: `[B, H, Sq, D]`, or `[T, H, D]` where the plan's sequences are packed.
        k: `[B, Hkv, Skv, D]` or `[T, Hkv, D]`.
        plan: made for these tensors.
        rows: int64 `[R]`, query rows within the sequence; None: random ones.
        num_rows: how many random rows.
        seed: of the random rows.
        n: sequence.
        scale: multiplies q.k; None: `D ** -0.5`.

    Returns:
        The mass per head and row; memory is linear in the prompt.

    Raises:
        InvalidInput: rows outside the sequence.
        PlanMismatch: the plan was made for other tensors.
    """
    problem = Problem.of(q, k, k, plan.sequences)
    plan.check_covers(problem)
    _, _, q_len, _, kv_len = problem.sequences.rows()[n]
    chosen = sample_rows(q_len, num_rows, seed) if rows is None else check_rows(rows, q_len)
    chosen = chosen.to(q.device)
    keys = torch.arange(kv_len, device=q.device)
    mass = torch.zeros(problem.num_heads, len(chosen), dtype=torch.float64, device=q.device)
    for h in range(problem.num_heads):
        for part, prob in row_probabilities(q, k, problem, chosen, n=n, h=h, scale=scale):
            allowed = plan.allows(n, h, chosen[part], keys)
            mass[h, part] = prob.masked_fill(~allowed, 0.0).sum(-1, dtype=torch.float64)
    return RetainedMass(chosen, mass)
