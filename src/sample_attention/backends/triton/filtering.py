"""Launches stage 2: thresholds of rank classes, then the sorted lists of what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...selection.classes import NUM_CLASSES
from .filter_kernel import compact_kernel, place_kernel, threshold_kernel
from .geometry import Geometry

BLOCK_CLASSES = 1024
"""Columns that a program of stage 2 looks at at once."""

TICKS = 2**40
"""Units of mass in `fewest`."""


@dataclass(frozen=True)
class Lists:
    """The lists of a plan while they are filled; all tensors lie on the device.

    Attributes:
        geometry: which segments there are, and what they can list.
        indices: int32 `[capacity]`.
        threshold: int32 `[N, H, G]`, the lowest class kept.
        offsets: int64 `[N, H, G]`.
        counts: int32 `[N, H, G]`.
        dense: bool `[N, H, G]`.
        used: int64 `[1]`, entries wanted so far.
    """

    geometry: Geometry
    indices: Tensor
    threshold: Tensor
    offsets: Tensor
    counts: Tensor
    dense: Tensor
    used: Tensor

    @classmethod
    def empty(cls, num_heads: int, geometry: Geometry, capacity: int) -> Lists:
        """Room for `capacity` entries; nothing is listed and nothing dense."""
        n, g = geometry.limits.shape
        device = geometry.limits.device
        counts = torch.zeros(n, num_heads, g, dtype=torch.int32, device=device)
        return cls(
            geometry, torch.empty(max(1, capacity), dtype=torch.int32, device=device),
            torch.empty_like(counts), torch.zeros_like(counts, dtype=torch.int64), counts,
            torch.zeros_like(counts, dtype=torch.bool),
            torch.zeros(1, dtype=torch.int64, device=device),
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
            classes, mass, self.geometry.limits, self.geometry.ends, self.threshold, self.counts,
            self.dense.view(torch.int8), pitch, self.geometry.segments, segments.start,
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
        n, h, g, pitch = classes.shape
        total = self.geometry.segments
        place: Any = place_kernel[(1,)]
        place(
            self.counts, self.dense.view(torch.int8), self.offsets, self.used, len(self.indices),
            total, segments.start, n * h * g, g, BLOCK=1024, num_warps=4,
        )  # fmt: skip
        compact: Any = compact_kernel[(g, h, n)]
        compact(
            classes, self.geometry.limits, self.threshold, self.counts, self.offsets, self.indices,
            pitch, total, segments.start, BLOCK=BLOCK_CLASSES, num_warps=4,
        )  # fmt: skip


def fewest(mass: Tensor, need: Tensor) -> Tensor:
    """The fewest entries of each row whose sum reaches `need`: bool like `mass`.

    Sums are of integers, so that they do not depend on how the device orders them.

    Args:
        mass: `[..., K]`, non-negative.
        need: `[...]`; 0 or less keeps nothing.
    """
    order = mass.argsort(dim=-1, descending=True, stable=True)
    ordered = (mass.gather(-1, order).double() * TICKS).long()
    keep = ordered.cumsum(-1) - ordered < (need.double() * TICKS).long()[..., None]
    return torch.zeros_like(keep).scatter_(-1, order, keep)
