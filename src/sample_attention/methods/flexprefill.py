"""FlexPrefill: per head, blocks found by pooled queries where those can be trusted, else slashes.

Rule, in blocks of 128. The exact softmax of the last 128 queries is summed per key and per
distance. The fewest keys, and the fewest distances, that hold `coverage` of it say how many blocks
of columns and of slashes are kept (their count over 128, plus one, at least `min_budget` keys),
the heaviest first; the first column and the nearest slash always. The mean of those queries
against the mean key of each block estimates the same mass per block: where the square root of the
Jensen-Shannon divergence from the exact mass is below `divergence`, the head is *query-aware*. It
keeps columns and slashes of `min_budget` keys only, and the heaviest blocks, by the softmax of
mean queries against mean keys, that together hold `coverage` of all rows of blocks. Prompts of up
to 256 keys, or `min_budget` if that is more, are dense.

Published for whole prompts. In a call with a cached prefix the last rows and the rows of blocks
are those of the call. The published count of blocks divides by 128 whatever the block; here by the
block.

Source: arXiv 2502.20766 and ByteDance-Seed/FlexPrefill (`flex_prefill_attention.py`); for Qwen2-7B
`flex_prefill_gamma` 0.9, `flex_prefill_tau` 0.1, `flex_prefill_min_budget` 1024.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config.checks import check_count, check_share
from ..plan import StripePlan
from ..problem import Problem
from .blocks import check_block, planned
from .heads import Heads
from .last_rows import last_rows_probabilities, mass_by_distance
from .method import Method


@dataclass(frozen=True)
class FlexPrefill(Method):
    """Query-aware blocks or vertical-slash, by divergence.

    Attributes:
        coverage: share of the mass to keep (the paper's gamma).
        divergence: below it a head is query-aware (the paper's tau).
        min_budget: least keys of columns and of slashes.
        block: rows and keys of a block.
    """

    coverage: float = 0.9
    divergence: float = 0.1
    min_budget: int = 1024
    block: int = 128
    knob: ClassVar[str] = "coverage, with a min_budget of one block"

    def __post_init__(self) -> None:
        """Check ranges."""
        check_share("coverage", self.coverage)
        check_share("divergence", self.divergence)
        check_count("min_budget", self.min_budget, 1)
        check_block("block", self.block)

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`."""
        return planned(q, k, problem, scale, (self.block, self.block), self._keep)

    def turned(self, dial: float, kv_len: int) -> FlexPrefill:
        """The coverage; the published budget alone would be above small densities."""
        del kv_len
        return replace(self, coverage=max(dial, 1e-6), min_budget=self.block)

    def _keep(self, heads: Heads) -> Tensor:
        blocks = -(-heads.kv_len // self.block)
        least = -(-self.min_budget // self.block)
        c = torch.arange(blocks, device=heads.k.device)
        distance = c[heads.offset // self.block :, None] - c
        if heads.kv_len <= max(2, least) * self.block:
            return (distance >= 0).repeat(len(heads.q), 1, 1)
        prob = last_rows_probabilities(heads, self.block)
        mass, slash_mass = prob.mean(1), mass_by_distance(prob) / prob.shape[1]
        by_column = _pooled(mass, self.block)
        by_slash = _pooled(slash_mass.flip(-1), self.block).flip(-1)  # the farthest in full blocks
        aware = self._query_aware(heads, by_column)
        counts = [(self._count(each) // self.block + 1).clamp(least) for each in (mass, slash_mass)]
        columns, slashes = (
            _largest(pooled, count.where(~aware, least))
            for pooled, count in zip((by_column, by_slash), counts, strict=True)
        )
        kept = columns[:, None] | slashes[:, distance.clamp(min=0)]
        kept |= self._pooled_blocks(heads, distance) & aware[:, None, None]
        return kept & (distance >= 0)

    def _count(self, mass: Tensor) -> Tensor:
        """The fewest entries that hold more than the coverage: `[M]`."""
        return (mass.sort(-1, descending=True).values.cumsum(-1) <= self.coverage).sum(-1) + 1

    def _query_aware(self, heads: Heads, exact: Tensor) -> Tensor:
        """Whether the mean query's mass per block is close to the exact `[M, C]`: bool `[M]`."""
        mean = heads.q[:, -self.block :].mean(1) * heads.scale
        estimate = torch.softmax(mean @ _mean_rows(heads.k, self.block).T, -1)
        middle = (exact + estimate) / 2
        # x log(x / middle), 0 at x = 0
        from_exact, from_estimate = (
            (torch.xlogy(x, x) - torch.xlogy(x, middle)).sum(-1) for x in (exact, estimate)
        )
        return ((from_exact + from_estimate) / 2).clamp(min=0).sqrt() < self.divergence

    def _pooled_blocks(self, heads: Heads, distance: Tensor) -> Tensor:
        """Blocks by mean queries and mean keys, the heaviest of all rows: bool `[M, R, C]`."""
        missing = heads.offset % self.block  # rows of the first block that came before the call
        padded = pad(heads.q, (0, 0, missing, 0))
        mean, rows = _mean_rows(padded, self.block), min(self.block, padded.shape[1])
        mean[:, 0] *= rows / (rows - missing)
        scores = (mean @ _mean_rows(heads.k, self.block).T * heads.scale).masked_fill_(
            distance < 0, -torch.inf
        )
        mass, order = torch.softmax(scores, -1).flatten(1).sort(-1, descending=True)
        kept = mass.cumsum(-1) <= self.coverage * len(distance)
        return torch.zeros_like(kept).scatter_(-1, order, kept).view_as(scores)


def _pooled(mass: Tensor, block: int) -> Tensor:
    """Sums over blocks, the last one padded: `[M, K]` to `[M, C]`."""
    return pad(mass, (0, -mass.shape[-1] % block)).unflatten(-1, (-1, block)).sum(-1)


def _mean_rows(x: Tensor, block: int) -> Tensor:
    """Means over blocks of rows, the last one of those it has: `[..., S, D]` to `[..., C, D]`."""
    rows = x.shape[-2]
    sums = pad(x, (0, 0, 0, -rows % block)).unflatten(-2, (-1, block)).sum(-2)
    starts = torch.arange(0, rows, block, device=x.device)
    return sums / (rows - starts).clamp(max=block)[:, None]


def _largest(mass: Tensor, count: Tensor) -> Tensor:
    """The `count` `[M]` heaviest blocks, the first always: bool like `mass` `[M, C]`."""
    mass[:, 0] = torch.inf
    rank = mass.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < count[:, None]
