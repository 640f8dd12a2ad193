"""Stage 2: the fewest columns whose mass reaches a share."""

from __future__ import annotations

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ..bins import NUM_BINS


def smallest_set(mass: Tensor, need: Tensor) -> Tensor:
    """The fewest entries of each row whose sum reaches `need`: bool like `mass`.

    Args:
        mass: `[..., K]`, non-negative.
        need: `[...]`; 0 or less keeps nothing.
    """
    order = mass.argsort(dim=-1, descending=True, stable=True)
    ordered = mass.gather(-1, order)
    keep = ordered.cumsum(-1) - ordered < need[..., None]
    return torch.zeros_like(keep).scatter_(-1, order, keep)


def smallest_bins(bins: Tensor, mass: Tensor, need: Tensor, num_classes: int = NUM_BINS) -> Tensor:
    """The lowest bin to keep so that the kept bins' mass reaches `need`.

    Args:
        bins: integers `[..., K]` in [0, num_classes).
        mass: `[..., K]`, non-negative, same order as `bins`.
        need: `[...]`; 0 or less keeps nothing.
        num_classes: how many bins there are.

    Returns:
        int32 `[...]`: keep `bins >= threshold`; num_classes where nothing is kept, 0 where even
        all bins fall short.
    """
    histogram = mass.new_zeros(*need.shape, num_classes).scatter_add_(-1, bins.long(), mass)
    above = histogram.flip(-1).cumsum(-1)  # mass of the highest 1, 2, ... bins
    kept = (above < need[..., None]).sum(-1) + (need > 0)
    return (num_classes - kept).clamp(min=0).int()


def needed(mass: Tensor, heads: range, config: SampleAttentionConfig, limits: Tensor) -> Tensor:
    """The mass columns have to hold, `[G, M]`, if those outside the window hold `mass`.

    Args:
        mass: `[G, M, K]`.
        heads: G query heads.
        config: the rule.
        limits: int64 `[M]` on the host, how many columns each segment can choose from.
    """
    outside = mass.sum(-1)
    budget, share = config.budget, config.coverage
    if budget.heads is not None:
        shares = budget.heads[heads.start : heads.stop]
        share = mass.new_tensor(shares)[:, None]
    if budget.tighten_below is not None:
        fewer = (limits.to(mass) / budget.tighten_below).clamp(max=1)
        share = 1 - (1 - share) * fewer.sqrt()
    return share - (1 - outside)


def lists_of(keep: Tensor) -> list[Tensor]:
    """Sorted int32 positions of the True entries of each row of `keep` `[M, K]`."""
    row, column = keep.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(keep)).tolist()
    return list(column.int().split(counts))
