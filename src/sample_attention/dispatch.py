"""Which backend runs: the first that accepts, or the one asked for, never another."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from .backends import NAMES
from .backends.base import Backend, Subject
from .config import SampleAttentionConfig
from .errors import InvalidConfig, UnsupportedProblem
from .plan import FixedRule, Selector, StripePlan
from .problem import Problem

ACCEPTED = "accepted"


@dataclass(frozen=True)
class Configured:
    """A backend that selects by a configuration, as a selector."""

    backend: Backend
    config: SampleAttentionConfig

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`."""
        return self.backend.select(q, k, problem, self.config, scale)


def backend_of(name: str) -> Backend:
    """The backend called `name`, imported now.

    Raises:
        InvalidConfig: there is no such backend.
    """
    if name not in NAMES:
        raise InvalidConfig(f"unknown backend {name!r}; accepted: auto, {', '.join(NAMES)}")
    module = importlib.import_module(f"sample_attention.backends.{name}")
    return cast("Backend", module.backend)


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
    if isinstance(rule, SampleAttentionConfig):
        return Configured(choose(name, problem, rule), rule)
    return rule
