"""Rank bins: ranks within a segment are compared by exponent and three mantissa bits.

A bin spans 1/16 to 1/8 of its ranks' value, far less than what a sample can resolve, and a
threshold is found by one histogram instead of a sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import BINS_PER_OCTAVE, LOWEST_OCTAVE

NUM_BINS = -LOWEST_OCTAVE * BINS_PER_OCTAVE + 1
"""A bin fits in a byte."""

MANTISSA_SHIFT = 23 - 3
"""What is shifted out of an fp32 rank: all but its exponent and three mantissa bits."""

LOWEST_BITS = (127 + LOWEST_OCTAVE) * BINS_PER_OCTAVE
"""What is left of `2 ** LOWEST_OCTAVE` after the shift: bin 0."""


def rank_bins(rank: Tensor) -> Tensor:
    """Bin of each rank in [0, 1], 0 the lowest: int32, shape of `rank` (fp32)."""
    return (rank.view(torch.int32) >> MANTISSA_SHIFT).sub_(LOWEST_BITS).clamp_(0, NUM_BINS - 1)
