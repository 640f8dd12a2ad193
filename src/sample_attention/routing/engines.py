"""The engines: who selects, who attends, and the names that stand for a pair of them."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from torch import Tensor

from ..config import Config
from ..errors import InvalidConfig
from ..plan import PlanForm, StripePlan
from ..problem import Problem

SELECTION = ("triton", "eager")
"""Engines that select, by preference."""

ATTENTION = ("hopper", "triton", "eager")
"""Engines that attend to plans, by preference."""

BACKENDS = {"hopper": ("triton", "hopper"), "triton": ("triton", "triton"), "eager": ("eager",) * 2}
"""What `backend=NAME` stands for: who selects and who attends."""


class SelectionEngine(Protocol):
    """Carries out a configuration, over the `[B, H, S, D]` views of a problem's tensors."""

    name: str

    def refusal(self, problem: Problem, config: Config) -> str | None:
        """Why the engine cannot select by this configuration; None: it can."""
        ...

    def select(
        self, q: Tensor, k: Tensor, problem: Problem, config: Config, scale: float
    ) -> StripePlan:
        """Stages 1 and 2: sampled column mass, then the fewest columns that hold it."""
        ...


class AttentionEngine(Protocol):
    """Attends to the pairs of a plan, over the `[B, H, S, D]` views of a problem's tensors."""

    name: str

    def refusal(self, problem: Problem, form: PlanForm | None = None) -> str | None:
        """Why the engine cannot attend to plans of this form, or to any (None); None: it can."""
        ...

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Out like q, and natural lse fp32 `[B, H, Sq]`, over the plan's pairs."""
        ...


def selection_engine(name: str) -> SelectionEngine:
    """The engine of that name, imported now."""
    module = importlib.import_module(f"sample_attention.selection.{name}")
    return cast("SelectionEngine", module.engine)


def attention_engine(name: str) -> AttentionEngine:
    """The engine of that name, imported now."""
    module = importlib.import_module(f"sample_attention.attention.{name}")
    return cast("AttentionEngine", module.engine)


def engines_of(backend: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of those that may select and of those that may attend, by preference.

    Raises:
        InvalidConfig: there is no backend of that name.
    """
    if backend == "auto":
        return SELECTION, ATTENTION
    if backend not in BACKENDS:
        raise InvalidConfig(f"unknown backend {backend!r}; accepted: auto, {', '.join(BACKENDS)}")
    selecting, attending = BACKENDS[backend]
    return (selecting,), (attending,)
