"""Hash-Sparse: a row attends to the keys whose hash is its own.

Rule: the hash of a vector is the largest of its products with `buckets / 2` random unit directions
and their negatives; a row keeps the earlier keys of its bucket. Published for models trained with
it; directions are drawn per head, fixed by the seed. The published kernel hides a row's own key,
and a row without keys gives zeros; here a row keeps itself (see `hashing`, also for segments of 16
rows).

Source: arXiv 2306.01160 (hash-sparse attention) and epfml/dynamic-sparse-flash-attention
(`hsparse_attn.py`; `nb_hash` 16).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..config.checks import check_count
from ..errors import InvalidConfig
from ..plan import StripePlan
from ..problem import Problem
from .hashing import SEGMENT, directions, keys_of_segments
from .method import Heads, Method, planned


@dataclass(frozen=True)
class HashSparse(Method):
    """Keys of equal hash.

    Attributes:
        buckets: even number of hashes.
        seed: of the directions.
    """

    buckets: int = 16
    seed: int = 0
    knob: ClassVar[str] = "buckets (fewer are denser)"

    def __post_init__(self) -> None:
        """Check ranges."""
        check_count("buckets", self.buckets, 2)
        if self.buckets % 2:
            raise InvalidConfig(f"buckets must be even, got {self.buckets}")

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`."""
        return planned(q, k, problem, scale, (SEGMENT, 1), self._keep)

    def turned(self, dial: float, kv_len: int) -> HashSparse:
        """One bucket for each share of `dial` of the keys, at most one for each key."""
        return replace(self, buckets=2 * max(1, round(0.5 / max(dial, 1 / kv_len))))

    def _keep(self, heads: Heads) -> Tensor:
        seeds = [self.seed * 2**20 + heads.first + i for i in range(len(heads.q))]
        axes = directions(heads, self.buckets // 2, seeds)
        axes = axes / axes.norm(dim=1, keepdim=True)
        rows, keys = (torch.cat([x @ axes, -(x @ axes)], -1).argmax(-1) for x in (heads.q, heads.k))
        return keys_of_segments(rows, keys, heads.offset, self.buckets)
