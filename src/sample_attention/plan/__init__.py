"""What will be computed: the plan, its form and its picture."""

from .render import render
from .stripe import WHOLE, PlanForm, Probe, StripePlan, segment_starts
from .window import window_edge

__all__ = ["WHOLE", "PlanForm", "Probe", "StripePlan", "render", "segment_starts", "window_edge"]
