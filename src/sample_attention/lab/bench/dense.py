"""The dense attention that is measured beside ours: every provider at hand, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...dense.base import DenseProvider, Facts
from ...dense.registry import PROVIDERS
from ...errors import InvalidInput, UnsupportedProblem
from ...problem import Problem


@dataclass(frozen=True)
class Dense:
    """One provider, on whole prompts of one length.

    Attributes:
        provider: what computes.
    """

    provider: DenseProvider

    @property
    def name(self) -> str:
        """What records call it."""
        return self.provider.name

    def refusal(self, problem: Problem) -> str | None:
        """Why it cannot compute the problem; None when it can."""
        facts = Facts.of(problem)
        if facts.layout != "square":
            return "measured on whole prompts of one length only"
        return self.provider.refusal(facts)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """Out `[B, H, S, D]` like q; k and v `[B, Hkv, S, D]`."""
        del problem
        return self.provider(q, k, v, scale)[0]


PROVIDERS_MEASURED = tuple(Dense(p) for p in PROVIDERS if "merged" not in p.name)


def dense_providers(names: Sequence[str], problem: Problem) -> list[Dense]:
    """The providers of these names, or without names all that accept the problem.

    Raises:
        InvalidInput: there is no provider of a name.
        UnsupportedProblem: one that was named refuses, or all do.
    """
    known = {provider.name: provider for provider in PROVIDERS_MEASURED}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInput(
            f"there is no dense provider '{unknown[0]}'; accepted: {', '.join(known)}"
        )
    verdicts = {name: known[name].refusal(problem) for name in names or known}
    reasons = {name: reason for name, reason in verdicts.items() if reason is not None}
    if reasons and (names or len(reasons) == len(known)):
        raise UnsupportedProblem(str(problem), reasons)
    return [known[name] for name in verdicts if name not in reasons]
