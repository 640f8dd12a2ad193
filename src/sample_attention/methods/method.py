"""What the methods have in common: a knob for their density, and plans from what they keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidConfig
from ..plan import StripePlan, segment_starts
from ..problem import Problem, keys_of

KEPT_AT_ONCE = 2**29
"""Entries (head, segment, key block) that are decided on at once; bounds extra memory."""


class Method(ABC):
    """A method to compare with: a selector whose density one setting moves.

    Attributes:
        knob: the settings that `turned` moves, and how.
    """

    knob: ClassVar[str]

    @abstractmethod
    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`."""

    @abstractmethod
    def turned(self, dial: float, kv_len: int) -> Method:
        """The method at a point of its range: from 0, the sparsest, to 1, close to dense."""


@dataclass(frozen=True)
class Heads:
    """Query heads of one sequence that share their key/value head; fp32, or fp64 if given so.

    Attributes:
        q: `[M, Sq, D]`.
        k: `[Skv, D]`.
        scale: multiplies q.k.
        first: index of the first of the heads.
    """

    q: Tensor
    k: Tensor
    scale: float
    first: int

    @property
    def kv_len(self) -> int:
        """Skv."""
        return len(self.k)

    @property
    def offset(self) -> int:
        """Position of the first query."""
        return len(self.k) - self.q.shape[1]

    @property
    def finite(self) -> Tensor:
        """Which heads hold neither NaN nor infinity, which only dense rows pass on: bool `[M]`."""
        return self.q.isfinite().flatten(1).all(1) & self.k.isfinite().all()


def planned(
    q: Tensor, k: Tensor, problem: Problem, scale: float, block: tuple[int, int],
    keep: Callable[[Heads], Tensor],
) -> StripePlan:  # fmt: skip
    """The plan of what a method keeps, and of every row's own segment.

    Args:
        q: `[B, H, Sq, D]`.
        k: `[B, Hkv, Skv, D]`.
        problem: where the sequences lie.
        scale: multiplies q.k.
        block: rows per segment, keys per block: blocks never straddle a segment's first row.
        keep: bool `[M, G, ceil(Skv / keys)]` for some heads; what is not causal is ignored.
    """
    rows, (segment, key_block) = problem.sequences.rows(), block
    firsts = [[lo for lo, _ in segment_starts(kv - n, kv, segment)] for _, _, n, _, kv in rows]
    shape = (len(rows), problem.num_heads, max(map(len, firsts)))
    counts = torch.zeros(shape, dtype=torch.int32, device=q.device)
    dense = torch.zeros(shape, dtype=torch.bool, device=q.device)
    lists = list[Tensor]()
    for n, starts in enumerate(firsts):
        left = torch.tensor(starts, device=q.device)[:, None] // segment * segment
        for heads in heads_of(q, k, problem, n, scale, len(starts) * (rows[n][4] // key_block + 1)):
            kept = keep(heads)
            selectable = torch.arange(kept.shape[-1], device=q.device) * key_block < left
            kept &= selectable
            at = n, slice(heads.first, heads.first + len(kept)), slice(len(starts))
            dense[at] = (kept | ~selectable).all(-1) | ~heads.finite[:, None]
            kept &= ~dense[at][..., None]
            counts[at] = kept.sum(-1, dtype=torch.int32)
            lists.append((kept.flatten().nonzero()[:, 0] % kept.shape[-1]).int())
    ends = counts.flatten().long().cumsum(0)
    return StripePlan(
        indices=torch.cat(lists), offsets=(ends - counts.flatten()).view(shape), counts=counts,
        dense=dense, sequences=problem.sequences, segment=segment,
        window=torch.ones(len(rows), dtype=torch.int32, device=q.device),
        window_alignment=segment, key_block=key_block,
    )  # fmt: skip


def heads_of(
    q: Tensor, k: Tensor, problem: Problem, n: int, scale: float, entries: int
) -> Iterator[Heads]:
    """The heads of one sequence, in order, as many at once as may be decided on at once.

    Args:
        q: `[B, H, Sq, D]`.
        k: `[B, Hkv, Skv, D]`.
        problem: where the sequences lie.
        n: sequence.
        scale: multiplies q.k.
        entries: what is to be decided on for each head.
    """
    (b, q0, q_len, _, _), group = problem.sequences.rows()[n], problem.group_size
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    at_once = min(group, max(1, KEPT_AT_ONCE // entries))
    for kv_head in range(problem.num_kv_heads):
        keys = keys_of(k[:, kv_head], problem.sequences, n).to(precise)
        for first in range(kv_head * group, (kv_head + 1) * group, at_once):
            last = min(first + at_once, (kv_head + 1) * group)
            yield Heads(q[b, first:last, q0 : q0 + q_len].to(precise), keys, scale, first)


def check_block(name: str, size: int) -> None:
    """Check that rows or keys can be taken in blocks of a size.

    Raises:
        InvalidConfig: not a power of two from 16 up, the tiles of the kernels.
    """
    if size < 16 or size & (size - 1):
        raise InvalidConfig(f"{name} must be a power of two from 16 up, got {size!r}")
