"""`StripePlan`: which keys each query row attends to, as sorted lists of keys per segment.

The meaning is one rule. For a row at absolute position p of its sequence and a key j <= p:

    allowed  iff  the row's segment is dense,  or  p >= kv_len - dense_tail,  or
                  j > align(p) - window        (the window),  or
                  j // key_block in list[p // segment]        (columns)

with `align(p) = p // window_alignment * window_alignment`: rows of one aligned run share the left
edge of their window, so that no tile of a kernel is cut by it. Block-shaped patterns are the same
object: with `segment = key_block = 128` each list names the kept 128-blocks of one row of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidInput, PlanMismatch
from ..problem import Problem, Sequences
from .window import window_edge

WHOLE = 2**30
"""Segment length of a plan whose rows all share one selection."""


class PlanForm(NamedTuple):
    """What an attention engine has to know of a plan before it is made; as in `StripePlan`."""

    segment: int
    window_alignment: int = 1
    key_block: int = 1
    dense_tail: int = 0


@dataclass(frozen=True)
class Probe:
    """Rows on which the retained mass is measured, and their dense log-sum-exp.

    Attributes:
        rows: int32 `[N, G, R]`, query rows within the call; -1 where a segment has fewer.
        lse: fp32 `[N, H, G, R]`, natural log-sum-exp over all visible keys.
    """

    rows: Tensor
    lse: Tensor


@dataclass(frozen=True)
class StripePlan:
    """Per sequence, head and segment a sorted list of key blocks, beside a window.

    Attributes:
        indices: int32 `[capacity]`, all lists one after another, each sorted and unique.
        offsets: int64 `[N, H, G]`, where each list starts in `indices`.
        counts: int32 `[N, H, G]`, how many key blocks each list holds.
        dense: bool `[N, H, G]`, segments whose rows attend to every key.
        sequences: where the sequences lie (`sequences.table` is read by the kernels).
        segment: rows per segment, aligned to absolute positions.
        window: int32 `[N]`, keys that a row keeps locally, itself included.
        window_alignment: rows that share one left edge of the window.
        key_block: keys per list entry.
        dense_tail: last rows of each sequence that attend to every key.
        probe: rows for measuring the retained mass, or None.
    """

    indices: Tensor
    offsets: Tensor
    counts: Tensor
    dense: Tensor
    sequences: Sequences
    segment: int
    window: Tensor
    window_alignment: int = 1
    key_block: int = 1
    dense_tail: int = 0
    probe: Probe | None = None

    @property
    def form(self) -> PlanForm:
        """What decides who can attend to it."""
        return PlanForm(self.segment, self.window_alignment, self.key_block, self.dense_tail)

    @property
    def num_heads(self) -> int:
        """Query heads that the plan covers."""
        return self.counts.shape[1]

    def columns(self, n: int, h: int, g: int) -> Tensor:
        """The sorted int32 list of key blocks of sequence `n`, head `h`, segment index `g`."""
        start = int(self.offsets[n, h, g])
        return self.indices[start : start + int(self.counts[n, h, g])]

    def allows(self, n: int, h: int, rows: Tensor, keys: Tensor) -> Tensor:
        """Which pairs are computed: the definition of the plan.

        Args:
            n: sequence.
            h: query head.
            rows: int64 `[R]`, query rows within the call (0 is the first query of the sequence).
            keys: int64 `[K]`, key positions within the sequence.

        Returns:
            bool `[R, K]`.
        """
        _, _, q_len, _, kv_len = self.sequences.rows()[n]
        p = rows + (kv_len - q_len)
        g = p // self.segment - (kv_len - q_len) // self.segment
        causal = keys[None] <= p[:, None]
        edge = p // self.window_alignment * self.window_alignment - int(self.window[n])
        listed = torch.zeros(len(rows), len(keys), dtype=torch.bool, device=keys.device)
        for i in torch.unique(g).tolist():
            member = torch.isin(keys // self.key_block, self.columns(n, h, i).long())
            listed[g == i] = member
        every = self.dense[n, h, g] | (p >= kv_len - self.dense_tail)
        return causal & (every[:, None] | (keys[None] > edge[:, None]) | listed)

    def to_dense(self, n: int, h: int) -> Tensor:
        """The whole mask of one sequence and head: bool `[Sq, Skv]`; for short prompts."""
        _, _, q_len, _, kv_len = self.sequences.rows()[n]
        device = self.indices.device
        return self.allows(
            n, h, torch.arange(q_len, device=device), torch.arange(kv_len, device=device)
        )

    def density(self) -> Tensor:
        """Computed pairs over causal pairs, fp64 `[N, H]`, counted exactly from the lists.

        Runs on the plan's device with a few int64 values per head and row, and waits for it.
        """
        return torch.stack([self._density(n) for n in range(len(self.counts))])

    def _density(self, n: int) -> Tensor:
        _, _, q_len, _, kv_len = self.sequences.rows()[n]
        p = torch.arange(kv_len - q_len, kv_len, device=self.indices.device)
        edge = window_edge(p, self.window[n], self.window_alignment).clamp(min=0)
        g = p // self.segment - (kv_len - q_len) // self.segment
        every = self.dense[n][:, g] | (p >= kv_len - self.dense_tail)
        kept = p + 1 - edge + self._listed_left_of(n, g, edge)
        return torch.where(every, p + 1, kept).sum(1).double() / (p + 1).sum()

    def _listed_left_of(self, n: int, g: Tensor, limit: Tensor) -> Tensor:
        """Listed keys j < limit `[Sq]` of the segments g `[Sq]`: int64 `[H, Sq]`, by bisection."""
        first = self.offsets[n][:, g]
        end = first + self.counts[n][:, g]
        if not len(self.indices):
            return torch.zeros_like(first)
        block, last = limit // self.key_block, len(self.indices) - 1
        lo, hi = first, end
        for _ in range(int(self.counts[n].max()).bit_length()):
            middle = (lo + hi) // 2
            below = (lo < hi) & (self.indices[middle.clamp(max=last)] < block)
            lo, hi = torch.where(below, middle + 1, lo), torch.where(below, hi, middle)
        cut = (lo < end) & (self.indices[lo.clamp(max=last)] == block)
        return (lo - first) * self.key_block + cut * (limit % self.key_block)

    def retained_mass(self, lse: Tensor) -> Tensor:
        """Dense probability on the kept keys, measured on the probe's held-out rows.

        exp(lse of the kept keys - lse of all keys), clamped to 1 against rounding.

        Args:
            lse: what `attend` returned for this plan, `[B, H, Sq]` or packed `[H, T]`.

        Returns:
            fp32 or fp64 `[N, H, G, R]`; NaN where a segment has fewer held-out rows.

        Raises:
            PlanMismatch: the plan was selected without held-out rows.
        """
        if self.probe is None:
            raise PlanMismatch(
                "the plan has no held-out rows to measure on; select with held_out=4 or more"
            )
        lse = lse if lse.dim() == 3 else lse[None]
        batch, q_start = self.sequences.table[:, 0].long(), self.sequences.table[:, 1].long()
        rows = self.probe.rows.long()
        at = (rows.clamp(min=0) + q_start[:, None, None])[:, None].expand(self.probe.lse.shape)
        sparse = lse[batch].gather(2, at.flatten(2)).view(at.shape)
        mass = torch.exp(sparse - self.probe.lse).clamp(max=1.0)
        return mass.masked_fill((rows < 0)[:, None], torch.nan)

    def with_dense(self, heads: Tensor) -> StripePlan:
        """The plan with every segment of the flagged heads dense; `heads` is bool `[N, H]`."""
        return replace(self, dense=self.dense | heads[..., None])

    def check_covers(self, problem: Problem) -> None:
        """Check that the plan was made for this problem.

        Raises:
            PlanMismatch: sequences, heads or device differ.
        """
        mine, theirs = self.sequences, problem.sequences
        same = mine.table.device == theirs.table.device and mine.packed == theirs.packed
        if same and mine.table is not theirs.table:
            same = mine.table.shape == theirs.table.shape and bool(
                torch.equal(mine.table, theirs.table)
            )
        if not same or self.num_heads != problem.num_heads:
            raise PlanMismatch(
                f"the plan covers {len(mine.table)} sequence(s) of up to "
                f"{mine.max_q_len} queries and {mine.max_kv_len} keys, {self.num_heads} heads, on "
                f"{mine.table.device}; the problem is {problem}; call select() on these tensors"
            )

    def __repr__(self) -> str:
        """Shape and mean density, without the lists."""
        s = self.sequences
        return (
            f"StripePlan(N={len(self.counts)}, H={self.num_heads}, Sq<={s.max_q_len}, "
            f"Skv<={s.max_kv_len}, segment={'all' if self.segment >= WHOLE else self.segment}, "
            f"key_block={self.key_block}, density={float(self.density().mean()):.3f})"
        )


def segment_starts(offset: int, kv_len: int, segment: int) -> list[tuple[int, int]]:
    """First and past-the-last absolute position of each segment that holds rows of the call.

    Raises:
        InvalidInput: there are no rows.
    """
    if offset >= kv_len:
        raise InvalidInput(f"no query rows: offset {offset}, Skv {kv_len}")
    first, last = offset // segment, (kv_len - 1) // segment
    return [
        (max(offset, i * segment), min(kv_len, (i + 1) * segment)) for i in range(first, last + 1)
    ]
