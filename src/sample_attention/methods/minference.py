"""Vertical-slash of MInference: single columns and slashes, ranked by the last 64 rows.

Rule: the exact softmax of the last 64 queries, summed per key and per distance; the `columns` best
keys (the first 30 always) and the `slashes` best distances (the first 100 always). The published
kernel works on 64 rows at a time and reads slashes in runs of 64 keys: the farthest slash left
starts a run where it enters the rows; while another slash begins within the 64 keys after a run,
the run grows by 64; else the next slash starts a new one. So a row also sees neighbours of its
slashes. This is that kernel's pattern exactly, with rows counted from the start of the sequence.

Which pair of sizes a head uses was searched offline for each model and published as a file. There
is none for the models of this project: the default is the pair that most heads of Qwen2.5-7B have;
the other common ones are (30, 800), (100, 800), (500, 700) and (3500, 100).

Source: arXiv 2407.02490 and microsoft/MInference (`minference_forward.py`,
`vertical_slash_index.cu`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..config.checks import check_count
from ..plan import StripePlan
from ..problem import Problem
from .blocks import planned
from .heads import Heads
from .last_rows import last_rows_probabilities, mass_by_distance
from .method import Method

TILE = 64
"""Rows per tile, keys per run of a slash, and rows that rank."""

FIRST_COLUMNS = 30
NEAREST_SLASHES = 100


@dataclass(frozen=True)
class VerticalSlash(Method):
    """Columns and slashes of fixed number.

    Attributes:
        columns: single keys that all rows keep, 30 or more.
        slashes: distances that all rows keep, 100 or more.
    """

    columns: int = 1000
    slashes: int = 6096
    knob: ClassVar[str] = "columns and slashes, in proportion"

    def __post_init__(self) -> None:
        """Check ranges."""
        check_count("columns", self.columns, FIRST_COLUMNS)
        check_count("slashes", self.slashes, NEAREST_SLASHES)

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`."""
        return planned(q, k, problem, scale, (TILE, 1), self._keep)

    def turned(self, dial: float, kv_len: int) -> VerticalSlash:
        """The published proportion; at 1 the larger of the two is all of the prompt."""
        factor = dial * kv_len / max(self.columns, self.slashes)
        return replace(
            self,
            columns=max(FIRST_COLUMNS, round(factor * self.columns)),
            slashes=max(NEAREST_SLASHES, round(factor * self.slashes)),
        )

    def _keep(self, heads: Heads) -> Tensor:
        prob = last_rows_probabilities(heads, TILE)
        columns = _best(prob.sum(1), FIRST_COLUMNS, self.columns)
        slashes = _best(mass_by_distance(prob), NEAREST_SLASHES, self.slashes)
        tiles = torch.arange(heads.offset // TILE, -(-heads.kv_len // TILE), device=prob.device)
        return slash_runs(slashes, (tiles + 1) * TILE, self.slashes) | columns[:, None]


def slash_runs(slashes: Tensor, ends: Tensor, most: int) -> Tensor:
    """Keys in the runs of the kernel: bool `[M, G, K]`.

    Args:
        slashes: bool `[M, K]`, kept distances; the smallest, 0, among them.
        ends: int64 `[G]`, position after the last row of each tile.
        most: bound of the number of slashes.
    """
    heads, kv_len = slashes.shape
    distances = torch.arange(kv_len, device=slashes.device)
    # The farthest kept distance below d, at index d; none below 0.
    below = torch.where(slashes, distances, -1).cummax(-1).values
    below = torch.nn.functional.pad(below, (1, 0), value=-1)
    run = below[:, ends.clamp(max=kv_len)].minimum(ends - TILE)  # distance from the end of the tile
    edges = torch.zeros(heads, len(ends), kv_len + 1, dtype=torch.int8, device=slashes.device)
    one = torch.ones_like(run, dtype=torch.int8)
    for _ in range(min(most, kv_len // TILE + 1) + 1):  # every run holds a slash, and 64 keys
        first = (ends - run - TILE).clamp(max=kv_len)
        edges.scatter_add_(-1, first[..., None], one[..., None])
        edges.scatter_add_(-1, (first + TILE).clamp(max=kv_len)[..., None], -one[..., None])
        following = below.gather(1, run.clamp(min=0))
        one = one * (following >= 0)
        run = torch.where(following >= 0, following.minimum(run - TILE), run)
    return edges.cumsum(-1, dtype=torch.int8)[..., :kv_len] > 0


def _best(mass: Tensor, always: int, count: int) -> Tensor:
    """The entries of largest mass, the first ones always: bool like `mass` `[M, K]`."""
    mass[:, :always] = torch.inf
    best = mass.topk(min(count, mass.shape[1]), -1).indices
    return torch.zeros_like(mass, dtype=torch.bool).scatter_(-1, best, value=True)
