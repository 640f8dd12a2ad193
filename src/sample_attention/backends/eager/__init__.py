"""PyTorch on any device: gathers the kept columns and calls fused dense attention on them."""

from __future__ import annotations

from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan import StripePlan
from ...problem import Problem
from ..base import Subject
from .attend import attend
from .select import select


class EagerBackend:
    """Extra memory is linear in the prompt; the host drives the loop."""

    name = "eager"

    def refusal(self, problem: Problem, subject: Subject = None) -> str | None:
        """Any device, head dim and dtype that torch multiplies, if there is data."""
        del subject
        return "tensors on the meta device hold no data" if problem.device.type == "meta" else None

    def select(
        self, q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, scale: float
    ) -> StripePlan:
        """See `Backend.select`."""
        return select(q, k, problem, config, scale)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.attend`."""
        return attend(q, k, v, problem, plan, scale)


backend = EagerBackend()
