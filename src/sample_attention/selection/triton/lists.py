"""Launches stage 2: thresholds of rank bins, then the sorted lists of what is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ..bins import NUM_BINS
from .geometry import Geometry
from .lists_kernel import compact_kernel, flag_kernel, offsets_kernel, threshold_kernel

BLOCK_BINS = 1024
"""Columns that a program that finds a threshold looks at at once."""

FLAG_LAUNCH = {"BLOCK": 4096, "num_warps": 4}
COMPACT_LAUNCH = {"BLOCK": 32, "num_warps": 1}
OFFSETS_LAUNCH = {"BLOCK": 4096, "num_warps": 16}

TICKS = 2**40
"""Units of mass in `fewest`."""


@dataclass(frozen=True)
class Lists:
    """The lists of a plan while they are filled; all tensors lie on the device.

    Attributes:
        geometry: which segments there are, and what they can list.
        coverage: fp32 `[H]`, the share that each head keeps.
        indices: int32 `[capacity]`.
        offsets: int64 `[N, H, G]`.
        counts: int32 `[N, H, G]`.
        dense: bool `[N, H, G]`.
        used: int64 `[1]`, entries wanted so far.
    """

    geometry: Geometry
    coverage: Tensor
    indices: Tensor
    offsets: Tensor
    counts: Tensor
    dense: Tensor
    used: Tensor

    @classmethod
    def empty(cls, geometry: Geometry, coverage: Tensor, capacity: int) -> Lists:
        """Room for `capacity` entries; nothing is listed and nothing dense."""
        n, g = geometry.limits.shape
        device, shape = geometry.limits.device, (n, len(coverage), g)
        indices = torch.empty(max(1, capacity), dtype=torch.int32, device=device)
        kinds = (shape, torch.int64), (shape, torch.int32), (shape, torch.bool), ((1,), torch.int64)
        return cls(geometry, coverage, indices, *_zeros(device, *kinds))

    def decide(
        self, bins: Tensor, mass: Tensor, segments: range, config: SampleAttentionConfig
    ) -> None:
        """Find the fewest bins that hold the share, and write the lists of their columns.

        What is dense already stays so.

        Args:
            bins: uint8 `[N, H, len(segments), pitch]`, ranks the columns.
            mass: like `bins`, decides how many.
            segments: which of the G segments.
            config: coverage and when a segment is dense.
        """
        n, h, g, pitch = bins.shape
        threshold = torch.empty_like(self.counts)
        launch: Any = threshold_kernel[(g, h, n)]
        launch(
            bins, mass, self.geometry.limits, self.geometry.always.view(torch.int8), threshold,
            self.dense.view(torch.int8), pitch, self.geometry.segments, segments.start,
            self.coverage, config.budget.tighten_below or 1,
            BLOCK=BLOCK_BINS, NUM_BINS=NUM_BINS, num_warps=4,
        )  # fmt: skip
        self._collect(bins, threshold, segments, config.dense_above)

    def keep(self, flags: Tensor, segments: range) -> None:
        """Write the lists of what is flagged: bool `[N, H, len(segments), pitch]`."""
        whole_words = torch.nn.functional.pad(flags.view(torch.uint8), (0, -flags.shape[-1] % 4))
        self._collect(whole_words, torch.ones_like(self.counts), segments, dense_above=1.0)

    def write(self, bits: Tensor, segments: range) -> None:
        """Write the lists of what has a bit behind those already there.

        Segments become dense whose lists would end beyond the capacity.

        Args:
            bits: int32 `[N, H, len(segments), words]`; `counts` has how many are set.
            segments: which of the G segments.
        """
        n, h, g, words = bits.shape
        total = self.geometry.segments
        offsets: Any = offsets_kernel[(1,)]
        offsets(
            self.counts, self.dense.view(torch.int8), self.offsets, self.used, len(self.indices),
            total, segments.start, n * h * g, g, **OFFSETS_LAUNCH,
        )  # fmt: skip
        compact: Any = compact_kernel[(g, h, n)]
        compact(
            bits, self.geometry.limits, self.counts, self.offsets, self.indices, words, total,
            segments.start, **COMPACT_LAUNCH,
        )  # fmt: skip

    def _collect(
        self, bins: Tensor, threshold: Tensor, segments: range, dense_above: float
    ) -> None:
        """Write the lists of the bins from the thresholds on.

        Segments become dense that would keep more than the share `dense_above` of their columns.
        """
        n, h, g, pitch = bins.shape
        words = -(-pitch // 32)
        bits = torch.empty(n, h, g, words, dtype=torch.int32, device=bins.device)
        flag: Any = flag_kernel[(g, h, n)]
        flag(
            bins, self.geometry.limits, threshold, self.counts, self.dense.view(torch.int8),
            bits, pitch, words, self.geometry.segments, segments.start, dense_above, **FLAG_LAUNCH,
        )  # fmt: skip
        self.write(bits, segments)


def _zeros(device: torch.device, *kinds: tuple[tuple[int, ...], torch.dtype]) -> list[Tensor]:
    """Zeros of each shape and dtype, filled by one launch and aligned as kernels expect."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
    room = [-(-size // 16) * 16 for size in sizes]
    parts = torch.zeros(sum(room), dtype=torch.uint8, device=device).split(room)
    return [
        part[:size].view(dtype).view(shape)
        for part, size, (shape, dtype) in zip(parts, sizes, kinds, strict=True)
    ]


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
