"""Attention in PyTorch on any device: gathers the kept columns, and attends to them densely."""

from __future__ import annotations

from torch import Tensor

from ...plan import PlanForm, StripePlan
from ...problem import Problem
from .attend import attend


class EagerAttention:
    """Extra memory is linear in the prompt; the host drives the loop."""

    name = "eager"

    def refusal(self, problem: Problem, form: PlanForm | None = None) -> str | None:
        """Any device, head dim and dtype that torch multiplies, if there is data."""
        del form
        return "tensors on the meta device hold no data" if problem.device.type == "meta" else None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionEngine.attend`."""
        return attend(q, k, v, problem, plan, scale)


engine = EagerAttention()
