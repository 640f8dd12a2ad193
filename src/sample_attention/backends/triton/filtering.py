"""Launches stage 2: thresholds of rank classes, then the sorted lists of what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from ...config import SampleAttentionConfig
from ...selection.classes import NUM_CLASSES
from .filter_kernel import compact_kernel, threshold_kernel

BLOCK_CLASSES = 512
"""Columns that a program of stage 2 looks at at once."""


TICKS = 2**40
"""Units of mass in `fewest`."""


@dataclass
class Lists:
    """The lists of a plan while they are filled; every tensor lies on the device.

    Attributes:
        limits: int32 `[N, G]`, columns that can be listed.
        ends: int32 `[N, G]`, position after each segment's last row.
        indices: int32 `[capacity]`.
        threshold: int32 `[N, H, G]`, the lowest class kept.
        offsets: int64 `[N, H, G]`.
        counts: int32 `[N, H, G]`.
        dense: bool `[N, H, G]`.
        used: int64, entries of `indices` in use.
    """

    limits: Tensor
    ends: Tensor
    indices: Tensor
    threshold: Tensor
    offsets: Tensor
    counts: Tensor
    dense: Tensor
    used: Tensor

    @classmethod
    def empty(cls, num_heads: int, limits: Tensor, ends: Tensor, capacity: int) -> Lists:
        """Room for `capacity` entries; nothing is listed and nothing dense."""
        n, g = limits.shape
        counts = torch.zeros(n, num_heads, g, dtype=torch.int32, device=limits.device)
        return cls(
            limits, ends, torch.empty(capacity, dtype=torch.int32, device=limits.device),
            torch.zeros_like(counts), counts.long(), counts,
            torch.zeros_like(counts, dtype=torch.bool),
            torch.zeros((), dtype=torch.int64, device=limits.device),
        )  # fmt: skip

    def decide(
        self, classes: Tensor, mass: Tensor, segments: range, config: SampleAttentionConfig
    ) -> None:
        """Find the fewest classes that hold the share; a segment that keeps too much is dense.

        What is dense already stays so.

        Args:
            classes: uint8 `[N, H, len(segments), pitch]`, ranks the columns.
            mass: like `classes`, decides how many.
            segments: which of the G segments.
            config: coverage and when a segment is dense.
        """
        n, h, g, pitch = classes.shape
        launch: Any = threshold_kernel[(g, h, n)]
        launch(
            classes, mass, self.limits, self.ends, self.threshold, self.counts,
            self.dense.view(torch.int8), pitch, self.limits.shape[1], segments.start,
            config.coverage, config.dense_above, config.dense_prefix,
            RESIDUAL=config.residual, BLOCK=BLOCK_CLASSES, NUM_CLASSES=NUM_CLASSES, num_warps=4,
        )  # fmt: skip

    def keep(self, flags: Tensor, segments: range) -> None:
        """Write the lists of what is flagged: bool `[N, H, len(segments), pitch]`."""
        part = (..., slice(segments.start, segments.stop))
        self.threshold[part] = 1
        self.counts[part] = flags.sum(-1).masked_fill(self.dense[part], 0)
        self.collect(flags.view(torch.uint8), segments)

    def collect(self, classes: Tensor, segments: range) -> None:
        """Write the lists of the decided segments behind those already there.

        Lists that would end beyond the capacity are dropped and their segments made dense.
        """
        part = (..., slice(segments.start, segments.stop))
        counts = self.counts[part]
        ends = counts.flatten().cumsum(0).view(counts.shape) + self.used
        beyond = ends > len(self.indices)
        self.dense[part] |= beyond
        self.offsets[part] = ends - counts
        counts.masked_fill_(beyond, 0)
        self.used = self.used + counts.sum()
        n, h, g, pitch = classes.shape
        launch: Any = compact_kernel[(g, h, n)]
        launch(
            classes, self.limits, self.threshold, self.counts, self.offsets, self.indices, pitch,
            self.limits.shape[1], segments.start, BLOCK=BLOCK_CLASSES, num_warps=4,
        )  # fmt: skip


def fewest(mass: Tensor, need: Tensor) -> Tensor:
    """The fewest entries of each row whose sum reaches `need`: bool like `mass`.

    Sums are of integers, so that they do not depend on how the device orders them.

    Args:
        mass: `[..., K]`, non-negative, rows of a sum of about 1 at most.
        need: `[...]`; 0 or less keeps nothing.
    """
    order = mass.argsort(dim=-1, descending=True, stable=True)
    ordered = (mass.gather(-1, order).double() * TICKS).long()
    keep = ordered.cumsum(-1) - ordered < (need.double() * TICKS).long()[..., None]
    return torch.zeros_like(keep).scatter_(-1, order, keep)
