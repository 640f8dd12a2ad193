"""The setting of a method that has a given density on given inputs."""

from __future__ import annotations

import math

from torch import Tensor

from ..problem import Problem, Sequences, as_batched
from .method import Method

STEPS = 16
CLOSE = 0.01
"""A density within this share of the one asked for ends the search."""


def at_density(
    method: Method, q: Tensor, k: Tensor, density: float, *,
    scale: float | None = None, sequences: Sequences | None = None,
) -> Method:  # fmt: skip
    """Turn a method's knob until its density, mean over heads, is as asked for.

    Bisection, with one selection per step. Where whole numbers are turned, or a method has parts
    that the knob does not move, the nearest setting found is returned; `density()` of its plan
    says what it reached.

    Args:
        method: whose knob to turn; its other settings stay.
        q: as for `select`.
        k: as for `select`.
        density: computed pairs over causal pairs.
        scale: as for `select`.
        sequences: as for `select`.

    Returns:
        The method with another setting.
    """
    problem = Problem.of(q, k, k, sequences)
    q, k, factor = as_batched(q, problem), as_batched(k, problem), problem.scale(scale)
    low, high = 0.0, 1.0
    best, distance = method, math.inf
    for _ in range(STEPS):
        dial = (low + high) / 2
        turned = method.turned(dial, problem.sequences.max_kv_len)
        reached = float(turned.select(q, k, problem, factor).density().mean())
        if abs(reached - density) < distance:
            best, distance = turned, abs(reached - density)
        if distance <= CLOSE * density:
            break
        low, high = (dial, high) if reached < density else (low, dial)
    return best
