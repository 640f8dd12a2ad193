"""What will be computed: the plan, its pictures, and rules that make plans by themselves."""

from .render import render
from .selector import FixedRule, NamedRule, Rule, Selector, as_rule, fixed_rule, rule_in_layer
from .stripe import Probe, StripePlan, segment_starts
from .tuned import Interval, Tuned

__all__ = [
    "FixedRule",
    "Interval",
    "NamedRule",
    "Probe",
    "Rule",
    "Selector",
    "StripePlan",
    "Tuned",
    "as_rule",
    "fixed_rule",
    "render",
    "rule_in_layer",
    "segment_starts",
]
