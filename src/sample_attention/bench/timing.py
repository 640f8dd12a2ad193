"""Timing that compares like with like: candidates take turns in one process, medians are kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds of one candidate.

    Attributes:
        p20: 20th percentile.
        p50: median.
        p80: 80th percentile.
        repeats: how many runs they come from.
    """

    p20: float
    p50: float
    p80: float
    repeats: int


def time_in_turns(
    candidates: Mapping[str, Callable[[], object]], *, seconds: float, repeats: int
) -> dict[str, Times]:
    """Time every candidate in turns, after one run of each that does not count.

    Args:
        candidates: what to run, by name.
        seconds: turns are taken for at least this long ...
        repeats: ... and at least this often.

    Returns:
        The times by name.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    start = time.perf_counter()
    turns = 0
    while turns < repeats or time.perf_counter() - start < seconds:
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - begin)
        turns += 1
    return {name: _summary(values) for name, values in taken.items()}


def _summary(values: list[float]) -> Times:
    if len(values) == 1:
        return Times(values[0], values[0], values[0], 1)
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Times(tenths[1], statistics.median(values), tenths[7], len(values))
