"""Attention by one Triton kernel that gathers keys by index."""

from __future__ import annotations

from torch import Tensor

from ...kernels.device import TILE_SIZES, triton_refusal
from ...plan import PlanForm, StripePlan
from ...problem import Problem


class TritonAttention:
    """Takes segments that are made of tiles."""

    name = "triton"

    def refusal(self, problem: Problem, form: PlanForm | None = None) -> str | None:
        """See `AttentionEngine.refusal`."""
        return (form and _form_refusal(form)) or triton_refusal(problem)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionEngine.attend`."""
        from .attend import attend

        return attend(q, k, v, problem, plan, scale)


def _form_refusal(form: PlanForm) -> str | None:
    rows = form.segment
    if rows in TILE_SIZES or rows % TILE_SIZES[-1] == 0:
        return None
    small = ", ".join(map(str, TILE_SIZES[:-1]))
    return f"segments of {rows} rows; accepted: {small} and multiples of {TILE_SIZES[-1]}"


engine = TritonAttention()
