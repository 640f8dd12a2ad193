"""Dense attention of a problem: in one call, or one sequence at a time."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..problem import Problem, keys_of
from .base import Facts
from .registry import choose_for_one, choose_provider


def dense(q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
    """Dense bottom-right causal attention of q `[B, H, Sq, D]`; rows of padding give zeros."""
    return _attend(q, k, v, problem, scale, lse=False)[0]


def dense_with_lse(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float
) -> tuple[Tensor, Tensor]:
    """`dense`, and the natural lse `[B, H, Sq]` over the visible keys (-inf for padding)."""
    out, lse = _attend(q, k, v, problem, scale, lse=True)
    return out, cast("Tensor", lse)


def blank(q: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros for out and -inf for lse: what rows of padding keep."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.full(q.shape[:3], -torch.inf, dtype=exact, device=q.device)
    return torch.zeros(q.shape, dtype=q.dtype, device=q.device), lse


def _attend(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float, *, lse: bool
) -> tuple[Tensor, Tensor | None]:
    facts = Facts.of(problem, lse=lse)
    provider = choose_provider(facts)
    if provider is not None:
        return provider(q, k, v, scale, problem.sequences if facts.layout == "packed" else None)
    out, total = blank(q)
    for n, (b, q0, q_len, _, kv_len) in enumerate(problem.sequences.rows()):
        rows = slice(q0, q0 + q_len)
        keys, values = (keys_of(x, problem.sequences, n)[None] for x in (k, v))
        alone = q[b : b + 1, :, rows], keys, values
        part, part_lse = choose_for_one(facts, q_len, kv_len)(*alone, scale)
        out[b, :, rows] = part[0]
        if part_lse is not None:
            total[b, :, rows] = part_lse[0]
    return out, total
