"""Timing that compares like with like: candidates take turns in one process, medians are kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Clock = Callable[[Callable[[], object]], float]
"""Runs something once and says how many seconds it took."""

FLUSHED_BYTES = 2**28
"""Written before every run on a GPU: several times its L2 cache."""

FLUSHES = 24
"""Times that is written: two milliseconds in which the host gets ahead of the device, as it is in
the layers of a model. What the host takes is another question; `bench kernels` answers it."""


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


def clock_of(device: torch.device) -> Clock:
    """The clock for what runs on a device: wall time on a CPU, CUDA events on a GPU."""
    return _cuda_clock(device) if device.type == "cuda" else wall_clock


def wall_clock(run: Callable[[], object]) -> float:
    """Seconds of wall time."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_clock(device: torch.device) -> Clock:
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def clock(run: Callable[[], object]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSHES):
            flushed.zero_()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1000

    return clock


def time_in_turns(
    candidates: Mapping[str, Callable[[], object]], *,
    seconds: float, repeats: int, clock: Clock = wall_clock,
) -> dict[str, Times]:  # fmt: skip
    """Time every candidate in turns, after one run of each that does not count.

    Args:
        candidates: what to run, by name.
        seconds: turns are taken for at least this long ...
        repeats: ... and at least this often.
        clock: times one run.

    Returns:
        The times by name.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        clock(run)
    start = time.perf_counter()
    turns = 0
    while turns < repeats or time.perf_counter() - start < seconds:
        for name, run in candidates.items():
            taken[name].append(clock(run))
        turns += 1
    return {name: summary(values) for name, values in taken.items()}


def summary(seconds: list[float]) -> Times:
    """The percentiles of a list of seconds."""
    if len(seconds) == 1:
        return Times(seconds[0], seconds[0], seconds[0], 1)
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return Times(tenths[1], statistics.median(seconds), tenths[7], len(seconds))
