"""A rule that selects by itself: what is accepted wherever a configuration is."""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from ..config import SampleAttentionConfig, as_config
from ..problem import Problem
from .stripe import StripePlan


@runtime_checkable
class Selector(Protocol):
    """Makes plans in its own way; the backends attend to them as to any other."""

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """The plan for q `[B, H, Sq, D]` and k `[B, Hkv, Skv, D]`, the problem's batched views."""
        ...


Rule: TypeAlias = SampleAttentionConfig | Selector
"""How keys are selected: by a configuration, which a backend carries out, or by a selector."""


def as_rule(rule: object) -> Rule:
    """The rule itself, or the preset of that name.

    Raises:
        InvalidConfig: neither a configuration, the name of a preset nor a selector.
    """
    plain = isinstance(rule, SampleAttentionConfig | str)  # asking for a protocol takes long
    if not plain and isinstance(rule, Selector) and not isinstance(rule, type):
        return rule
    return as_config(rule)
