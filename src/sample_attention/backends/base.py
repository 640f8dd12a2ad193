"""What a backend offers: a verdict on a problem, and the two operations."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from torch import Tensor

from ..config import SampleAttentionConfig
from ..plan import StripePlan
from ..problem import Problem

Subject: TypeAlias = SampleAttentionConfig | StripePlan | None
"""What a backend is asked about: selecting by a configuration, attending to a plan, or to any."""


class Backend(Protocol):
    """Two operations over the `[B, H, S, D]` views of a problem's tensors."""

    name: str

    def refusal(self, problem: Problem, subject: Subject = None) -> str | None:
        """Why the backend cannot select by a configuration, or attend to a plan; None: it can."""
        ...

    def select(
        self, q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, scale: float
    ) -> StripePlan:
        """Stages 1 and 2: sampled column mass, then the fewest columns that hold it."""
        ...

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Out like q, and natural lse fp32 `[B, H, Sq]`, over the plan's pairs."""
        ...
