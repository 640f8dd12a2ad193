"""From key lists per (sequence, head, segment) to one immutable plan."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import Config
from ..plan import HeldOut, StripePlan, segment_starts
from ..problem import Problem
from .geometry import plan_form, window_for
from .rows import held_out_rows


@dataclass
class SegmentLists:
    """Collects lists in any order; `plan` joins them.

    Attributes:
        problem: what the plan is for.
        config: the rule.
        segment: rows per segment of the plan.
    """

    problem: Problem
    config: Config
    segment: int = field(init=False)

    def __post_init__(self) -> None:
        """Lay out one empty, sparse segment per (sequence, head, segment)."""
        self.segment = plan_form(self.config).segment
        self._rows = self.problem.sequences.rows()
        self._starts = [segment_starts(kv - q, kv, self.segment) for (_, _, q, _, kv) in self._rows]
        shape = (len(self._rows), self.problem.num_heads, max(len(s) for s in self._starts))
        self._counts = torch.zeros(shape, dtype=torch.int32, device="cpu")
        self.dense = torch.zeros(shape, dtype=torch.bool, device="cpu")
        self._lists: dict[tuple[int, int, int], Tensor] = {}

    def starts(self, n: int) -> list[tuple[int, int]]:
        """First and past-the-last position of each segment of sequence `n`."""
        return self._starts[n]

    def put(self, n: int, h: int, g: int, columns: Tensor) -> None:
        """Set the sorted int32 list of a segment."""
        self._lists[n, h, g] = columns
        self._counts[n, h, g] = len(columns)

    def plan(self, held_out: HeldOut | None = None) -> StripePlan:
        """Join the lists into a plan on the problem's device."""
        device, form = self.problem.device, plan_form(self.config)
        ends = self._counts.flatten().long().cumsum(0)
        offsets = (ends - self._counts.flatten()).view(self._counts.shape)
        ordered = [self._lists[key] for key in sorted(self._lists)]
        empty = torch.zeros(0, dtype=torch.int32, device=device)
        window = [window_for(self.config, kv) for (_, _, _, _, kv) in self._rows]
        return StripePlan(
            indices=torch.cat(ordered) if ordered else empty,
            offsets=offsets.to(device),
            counts=self._counts.to(device),
            dense=self.dense.to(device),
            sequences=self.problem.sequences,
            segment=self.segment,
            window=torch.tensor(window, dtype=torch.int32, device=device),
            window_alignment=form.window_alignment,
            key_block=form.key_block,
            dense_tail=form.dense_tail,
            held_out=held_out,
        )

    def held_out_rows(self) -> Tensor:
        """Held-out rows within the call: int32 `[N, G, R]`, -1 where there are fewer."""
        g = self._counts.shape[2]
        longest = max(hi - lo for starts in self._starts for lo, hi in starts)
        most = min(self.config.check.held_out_rows, longest)
        rows = torch.full((len(self._rows), g, most), -1, dtype=torch.int32, device="cpu")
        for n, (_, _, q_len, _, kv_len) in enumerate(self._rows):
            for i, (lo, hi) in enumerate(self._starts[n]):
                held = held_out_rows(lo, hi, self.config) - (kv_len - q_len)
                rows[n, i, : len(held)] = held.int()
        return rows
