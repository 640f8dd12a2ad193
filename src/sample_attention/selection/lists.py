"""From key lists per (sequence, head, segment) to one immutable plan."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import SampleAttentionConfig
from ..plan import Probe, StripePlan, segment_starts
from ..plan.stripe import WHOLE
from ..problem import Problem
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
    config: SampleAttentionConfig
    segment: int = field(init=False)

    def __post_init__(self) -> None:
        """Lay out one empty, sparse segment per (sequence, head, segment)."""
        config, sequences = self.config, self.problem.sequences
        by_rows = WHOLE if config.segment is None else config.segment
        self.segment = config.key_block if config.key_block > 1 else by_rows
        self._rows = sequences.rows()
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

    def plan(self, probe: Probe | None = None) -> StripePlan:
        """Join the lists into a plan on the problem's device."""
        device = self.problem.device
        ends = self._counts.flatten().long().cumsum(0)
        offsets = (ends - self._counts.flatten()).view(self._counts.shape)
        ordered = [self._lists[key] for key in sorted(self._lists)]
        empty = torch.zeros(0, dtype=torch.int32, device=device)
        window = [self.config.window_for(kv) for (_, _, _, _, kv) in self._rows]
        return StripePlan(
            indices=torch.cat(ordered) if ordered else empty,
            offsets=offsets.to(device),
            counts=self._counts.to(device),
            dense=self.dense.to(device),
            sequences=self.problem.sequences,
            segment=self.segment,
            window=torch.tensor(window, dtype=torch.int32, device=device),
            window_alignment=self.config.window_alignment,
            key_block=self.config.key_block,
            dense_tail=self.config.tail_rows,
            probe=probe,
        )

    def probe_rows(self) -> Tensor:
        """Held-out rows within the call: int32 `[N, G, R]`, -1 where there are fewer."""
        g = self._counts.shape[2]
        longest = max(hi - lo for starts in self._starts for lo, hi in starts)
        held_out = min(self.config.held_out, longest)
        rows = torch.full((len(self._rows), g, held_out), -1, dtype=torch.int32, device="cpu")
        for n, (_, _, q_len, _, kv_len) in enumerate(self._rows):
            for i, (lo, hi) in enumerate(self._starts[n]):
                held = held_out_rows(lo, hi, self.config) - (kv_len - q_len)
                rows[n, i, : len(held)] = held.int()
        return rows
