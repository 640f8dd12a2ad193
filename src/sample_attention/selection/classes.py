"""Rank classes: ranks within a segment are compared by exponent and three mantissa bits.

A class spans 1/16 to 1/8 of its ranks' value, far less than what a sample can resolve, and a
threshold is found by one histogram instead of a sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import CLASSES_PER_OCTAVE, LOWEST_OCTAVE

NUM_CLASSES = -LOWEST_OCTAVE * CLASSES_PER_OCTAVE + 1
_MANTISSA_SHIFT = 23 - 3
_LOWEST = (127 + LOWEST_OCTAVE) * CLASSES_PER_OCTAVE


def rank_classes(rank: Tensor) -> Tensor:
    """Class of each rank in [0, 1], 0 the lowest: int32, shape of `rank` (fp32)."""
    return (rank.view(torch.int32) >> _MANTISSA_SHIFT).sub_(_LOWEST).clamp_(0, NUM_CLASSES - 1)
