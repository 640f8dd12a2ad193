"""The engines: who selects, who attends, and the names that stand for a pair of them."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from torch import Tensor

from ..config import Config
from ..errors import InvalidConfig, UnsupportedProblem
from ..plan import PlanForm, StripePlan
from ..problem import Problem
from ..selection.geometry import plan_form

ACCEPTED = "accepted"

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


def choose_selection(backend: str, problem: Problem, config: Config) -> str:
    """The first engine that selects by a configuration, of those that the backend allows.

    Raises:
        UnsupportedProblem: none accepts; lists every reason.
        InvalidConfig: there is no backend of that name.
    """
    for name in engines_of(backend)[0]:
        if selection_engine(name).refusal(problem, config) is None:
            return name
    raise UnsupportedProblem(str(problem), verdicts(problem, config))


def choose_attention(backend: str, problem: Problem, form: PlanForm | None = None) -> str:
    """The first engine that attends to plans of a form (None: of any), of those allowed.

    Raises:
        UnsupportedProblem, InvalidConfig: as `choose_selection` does.
    """
    for name in engines_of(backend)[1]:
        if attention_engine(name).refusal(problem, form) is None:
            return name
    raise UnsupportedProblem(str(problem), verdicts(problem, form=form))


def choose_engines(backend: str, problem: Problem, config: Config) -> tuple[str, str]:
    """Who selects by a configuration, and who attends to its plans.

    Raises:
        UnsupportedProblem, InvalidConfig: as `choose_selection` does.
    """
    selecting = choose_selection(backend, problem, config)
    return selecting, choose_attention(backend, problem, plan_form(config))


def verdicts(
    problem: Problem, config: Config | None = None, form: PlanForm | None = None
) -> dict[str, str]:
    """For every backend `accepted` or the reason of its refusal, by preference.

    Args:
        problem: the facts.
        config: that it would select by; None: it is not asked to select.
        form: of the plans that it would attend to; None: that of the configuration, or any.
    """
    return {name: refusal_of(name, problem, config, form) or ACCEPTED for name in BACKENDS}


def refusal_of(
    backend: str, problem: Problem, config: Config | None = None,
    form: PlanForm | None = None,
) -> str | None:  # fmt: skip
    """Why a backend cannot do what `verdicts` asks about; None: it can."""
    (selecting,), (attending,) = engines_of(backend)
    form = plan_form(config) if form is None and config is not None else form
    refused = attention_engine(attending).refusal(problem, form)
    if refused is None and config is not None:
        refused = selection_engine(selecting).refusal(problem, config)
    return refused


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
