"""A rule that selects by itself: what is accepted wherever a configuration is."""

from __future__ import annotations

import os
from typing import Protocol, TypeAlias, cast, runtime_checkable

from torch import Tensor

from ..config import PRESETS, SampleAttentionConfig, Tuned, as_config, names_tuned
from ..errors import InvalidConfig
from ..plan import StripePlan
from ..problem import Problem


@runtime_checkable
class Selector(Protocol):
    """Makes plans in its own way; the backends attend to them as to any other."""

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """The plan for q `[B, H, Sq, D]` and k `[B, Hkv, Skv, D]`, the problem's batched views."""
        ...


FixedRule: TypeAlias = SampleAttentionConfig | Selector
"""How keys are selected: by a configuration, which a backend carries out, or by a selector."""

Rule: TypeAlias = FixedRule | Tuned
"""How keys are selected, which may depend on the length of the call."""

NamedRule: TypeAlias = Rule | str | os.PathLike[str]
"""A rule, or what stands for one: a preset's name, `tuned:NAME`, or the path of a tuned file."""


def as_rule(rule: object) -> Rule:
    """The rule itself, or what a name or path stands for: a preset or a tuned configuration.

    Raises:
        InvalidConfig: neither a configuration, such a name nor a selector.
    """
    if isinstance(rule, str) and names_tuned(rule):
        return Tuned.load(rule)
    if isinstance(rule, Tuned):
        return rule
    plain = isinstance(rule, SampleAttentionConfig | str)  # asking for a protocol takes long
    if not plain and isinstance(rule, Selector) and not isinstance(rule, type):
        return rule
    if not plain and isinstance(rule, os.PathLike):
        return Tuned.load(cast("os.PathLike[str]", rule))
    if isinstance(rule, str) and rule not in PRESETS:
        raise InvalidConfig(
            f"unknown preset {rule!r}; accepted: {', '.join(sorted(PRESETS))}, tuned:NAME, or the "
            "path of a tuned file, which ends in .json"
        )
    return as_config(rule)


def rule_in_layer(rule: Rule, layer: int, layers: int) -> Rule:
    """The rule in one layer, of so many, of a model; a selector's is the same in all.

    Raises:
        InvalidConfig: tuned for a model of another number of layers, or without such a layer.
    """
    layered = isinstance(rule, SampleAttentionConfig | Tuned)
    return rule.for_layer(layer, layers) if layered else rule


def fixed_rule(rule: Rule, kv_len: int, problem: Problem) -> FixedRule:
    """The rule for a sequence of `kv_len` keys: of a tuned configuration that for its length.

    Raises:
        InvalidConfig: `head_coverage` is for another number of heads.
    """
    fixed = rule.for_length(kv_len) if isinstance(rule, Tuned) else rule
    if isinstance(fixed, SampleAttentionConfig) and fixed.head_coverage is not None:
        fixed.coverage_of(problem.num_heads)  # or raises
    return fixed
