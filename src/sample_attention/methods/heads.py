"""The query heads of one sequence, taken together as far as memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import Problem, keys_of

DECIDED_AT_ONCE = 2**29
"""Entries (head, segment, key block) that are decided on at once; bounds extra memory."""


@dataclass(frozen=True)
class Heads:
    """Query heads of one sequence that share their key/value head; fp32, or fp64 if given so.

    Attributes:
        q: `[M, Sq, D]`.
        k: `[Skv, D]`.
        scale: multiplies q.k.
        first: index of the first of the heads.
    """

    q: Tensor
    k: Tensor
    scale: float
    first: int

    @property
    def kv_len(self) -> int:
        """Skv."""
        return len(self.k)

    @property
    def offset(self) -> int:
        """Position of the first query."""
        return len(self.k) - self.q.shape[1]

    @property
    def finite(self) -> Tensor:
        """Which heads hold neither NaN nor infinity, which only dense rows pass on: bool `[M]`."""
        return self.q.isfinite().flatten(1).all(1) & self.k.isfinite().all()


def heads_of(
    q: Tensor, k: Tensor, problem: Problem, n: int, scale: float, entries: int
) -> Iterator[Heads]:
    """The heads of one sequence, in order, as many at once as may be decided on at once.

    Args:
        q: `[B, H, Sq, D]`.
        k: `[B, Hkv, Skv, D]`.
        problem: where the sequences lie.
        n: sequence.
        scale: multiplies q.k.
        entries: what is to be decided on for each head.
    """
    (b, q0, q_len, _, _), group = problem.sequences.rows()[n], problem.group_size
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    at_once = min(group, max(1, DECIDED_AT_ONCE // entries))
    for kv_head in range(problem.num_kv_heads):
        keys = keys_of(k[:, kv_head], problem.sequences, n).to(precise)
        for first in range(kv_head * group, (kv_head + 1) * group, at_once):
            last = min(first + at_once, (kv_head + 1) * group)
            yield Heads(q[b, first:last, q0 : q0 + q_len].to(precise), keys, scale, first)
