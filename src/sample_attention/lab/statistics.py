"""Means with 95 % confidence intervals, from resampled prompts.

Methods answer the same prompts, so a difference between two of them is taken prompt by prompt, and
what all prompts share cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 4000
"""Sets of prompts, drawn with replacement, that an interval is read off."""

TAIL = 0.025


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean over prompts."""
    x = torch.tensor(values, dtype=torch.float64, device="cpu")
    return _estimate(float(x.mean()), x[_draws(len(x))].mean(1))


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Estimate:
    """The mean of `values - reference` over the same prompts."""
    pairs = zip(values, reference, strict=True)
    return mean_interval([a - b for a, b in pairs])


def paired_ratio(
    values: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> Estimate | None:
    """The mean over tasks of `values` over that of `reference`, prompts resampled in each task.

    Args:
        values: per task and prompt.
        reference: the same tasks and prompts.

    Returns:
        None where the reference is zero.
    """
    tops, bottoms = list[Tensor](), list[Tensor]()
    for i, (given, base) in enumerate(zip(values, reference, strict=True)):
        x, y = (torch.tensor(part, dtype=torch.float64, device="cpu") for part in (given, base))
        draws = _draws(len(x), seed=i)
        tops.append(torch.cat([x.mean()[None], x[draws].mean(1)]))
        bottoms.append(torch.cat([y.mean()[None], y[draws].mean(1)]))
    top, bottom = torch.stack(tops).mean(0), torch.stack(bottoms).mean(0)
    if not float(bottom[0]):
        return None
    ratio = top[bottom > 0] / bottom[bottom > 0]  # without a reference there is no ratio
    return _estimate(float(ratio[0]), ratio[1:])


def _draws(count: int, seed: int = 0) -> Tensor:
    """Indices of resampled prompts: int64 `[RESAMPLES, count]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(count, (RESAMPLES, count), generator=generator, device="cpu")


def _estimate(mean: float, resampled: Tensor) -> Estimate:
    low, high = resampled.quantile(
        torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64, device="cpu")
    ).tolist()
    return Estimate(mean, low, high)
