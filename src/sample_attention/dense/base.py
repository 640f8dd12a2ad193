"""What a provider of dense attention offers, and the facts that it decides on."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..problem import Problem, Sequences

Layout = Literal["row", "square", "chunk", "packed", "several"]
"""One query; as many queries as keys; fewer; packed without gaps; sequences anywhere else."""


class Facts(NamedTuple):
    """All that a provider decides on, hashable, so that a choice is made once for many calls.

    Attributes:
        device: of the tensors.
        dtype: of the tensors.
        head_dim: D.
        layout: how queries and keys lie.
        lse: the log-sum-exp is wanted.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    layout: Layout
    lse: bool = False

    @classmethod
    def of(cls, problem: Problem, *, lse: bool = False) -> Facts:
        """The facts of a problem."""
        s = problem.sequences
        layout: Layout = "several"
        if s.uniform:
            layout = layout_of(s.max_q_len, s.max_kv_len)
        elif s.totals is not None and s.max_q_len > 1:
            layout = "packed"
        return cls(problem.device, problem.dtype, problem.head_dim, layout, lse)


class DenseProvider(Protocol):
    """Dense causal attention on `[B, H, S, D]` views; queries are the last positions."""

    @property
    def name(self) -> str:
        """What `explain` prints."""
        ...

    def refusal(self, facts: Facts) -> str | None:
        """Why the provider cannot take such a call; None when it can."""
        ...

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, sequences: Sequences | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Out like q, and natural lse `[B, H, Sq]` (None where the provider returns none).

        `sequences` are those of a packed batch; None: every batch row is one.
        """
        ...


def layout_of(q_len: int, kv_len: int) -> Layout:
    """The layout of one sequence."""
    if q_len == 1:
        return "row"
    return "square" if q_len == kv_len else "chunk"
