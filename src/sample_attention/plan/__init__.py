"""What will be computed: the plan and its pictures."""

from .render import render
from .stripe import Probe, StripePlan, segment_starts

__all__ = ["Probe", "StripePlan", "render", "segment_starts"]
