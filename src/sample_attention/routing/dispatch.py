"""Which backend runs: the first that accepts, or the one asked for, never another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from ..config import Config
from ..errors import InvalidConfig, UnsupportedProblem
from ..plan import StripePlan
from ..problem import Problem
from ..selection.geometry import plan_form
from ..selection.rule import FixedRule, Selector
from .engines import BACKENDS, attention_engine, selection_engine

ACCEPTED = "accepted"
NAMES = tuple(BACKENDS)

Subject: TypeAlias = Config | StripePlan | None
"""What a backend is asked about: selecting by a configuration, attending to a plan, or to any."""


@dataclass(frozen=True)
class Backend:
    """Who selects and who attends under one name."""

    name: str

    def refusal(self, problem: Problem, subject: Subject = None) -> str | None:
        """Why the backend cannot select by a configuration, or attend to a plan; None: it can."""
        selecting, attending = BACKENDS[self.name]
        if not isinstance(subject, Config):
            return attention_engine(attending).refusal(problem, subject and subject.form)
        refused = None
        if attending != selecting:
            refused = attention_engine(attending).refusal(problem, plan_form(subject))
        return refused or selection_engine(selecting).refusal(problem, subject)

    def select(
        self, q: Tensor, k: Tensor, problem: Problem, config: Config, scale: float
    ) -> StripePlan:
        """See `SelectionEngine.select`."""
        return selection_engine(BACKENDS[self.name][0]).select(q, k, problem, config, scale)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionEngine.attend`."""
        return attention_engine(BACKENDS[self.name][1]).attend(q, k, v, problem, plan, scale)


@dataclass(frozen=True)
class Configured:
    """A backend that selects by a configuration, as a selector."""

    backend: Backend
    config: Config

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`."""
        return self.backend.select(q, k, problem, self.config, scale)


def backend_of(name: str) -> Backend:
    """The backend called `name`, .

    Raises:
        InvalidConfig: there is no such backend.
    """
    if name not in NAMES:
        raise InvalidConfig(f"unknown backend {name!r}; accepted: auto, {', '.join(NAMES)}")
    return Backend(name)


def verdicts(problem: Problem, subject: Subject = None) -> dict[str, str]:
    """For every backend `accepted` or the reason of its refusal, by preference."""
    return {name: backend_of(name).refusal(problem, subject) or ACCEPTED for name in NAMES}


def choose(name: str, problem: Problem, subject: Subject = None) -> Backend:
    """Who selects by a configuration, or attends to a plan: a name, or the first to accept.

    Raises:
        UnsupportedProblem: none, or not the one named, accepts; lists every reason.
        InvalidConfig: there is no backend of that name.
    """
    if name != "auto":
        backend = backend_of(name)
        reason = backend.refusal(problem, subject)
        if reason is not None:
            raise UnsupportedProblem(str(problem), {**verdicts(problem, subject), name: reason})
        return backend
    for backend in map(backend_of, NAMES):
        if backend.refusal(problem, subject) is None:
            return backend
    raise UnsupportedProblem(str(problem), verdicts(problem, subject))


def selector_of(name: str, problem: Problem, rule: FixedRule) -> Selector:
    """Who selects by a rule: the rule itself, or the backend chosen to carry it out.

    Raises:
        UnsupportedProblem, InvalidConfig: as `choose` does.
    """
    if isinstance(rule, Config):
        return Configured(choose(name, problem, rule), rule)
    return rule
