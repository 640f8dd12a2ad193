"""Selection in PyTorch, on any device; extra memory is linear in the prompt."""

from __future__ import annotations

from torch import Tensor

from ...config import Config
from ...plan import StripePlan
from ...problem import Problem
from .select import select


class EagerSelection:
    """The host drives the loop over segments."""

    name = "eager"

    def refusal(self, problem: Problem, config: Config) -> str | None:
        """Any device, head dim and dtype that torch multiplies, if there is data."""
        del config
        return "tensors on the meta device hold no data" if problem.device.type == "meta" else None

    def select(
        self, q: Tensor, k: Tensor, problem: Problem, config: Config, scale: float
    ) -> StripePlan:
        """See `SelectionEngine.select`."""
        return select(q, k, problem, config, scale)


engine = EagerSelection()
