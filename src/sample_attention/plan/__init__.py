"""What will be computed: the plan, its pictures, and rules that make plans by themselves."""

from .render import render
from .selector import Rule, Selector, as_rule
from .stripe import Probe, StripePlan, segment_starts

__all__ = ["Probe", "Rule", "Selector", "StripePlan", "as_rule", "render", "segment_starts"]
