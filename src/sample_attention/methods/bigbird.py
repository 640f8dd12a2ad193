"""BigBird: blocks near the row, global blocks and random blocks, the same for every input.

Rule (internal transformer construction), for rows of block i: the `window_blocks` blocks around i;
the global blocks, half of them at the start and half at the end of the sequence, which all rows
keep and whose own rows keep all; `random_blocks` others. Published for encoders, so here it meets
the causal mask: the blocks right of i drop out, the global blocks at the end are dense rows, and
random blocks are drawn from the left. Which those are depends on the seed, the head and the two
blocks alone, not on the device or on how a prompt is cut into calls.

Source: arXiv 2007.14062, and its settings in transformers (`block_size` 64, 3 window blocks, 2
global blocks, `num_random_blocks` 3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..config.checks import check_count
from ..plan import StripePlan
from ..problem import Problem
from .method import Heads, Method, check_block, planned


@dataclass(frozen=True)
class BigBird(Method):
    """Window, global and random blocks.

    Attributes:
        block: rows and keys of a block.
        window_blocks: blocks around the row's own, itself included; odd numbers are symmetrical.
        global_blocks: blocks at the start and at the end.
        random_blocks: other blocks per block of rows and head.
        seed: of the random blocks.
    """

    block: int = 64
    window_blocks: int = 3
    global_blocks: int = 2
    random_blocks: int = 3
    seed: int = 0
    knob: ClassVar[str] = "window_blocks, global_blocks and random_blocks, in proportion"

    def __post_init__(self) -> None:
        """Check ranges."""
        check_block("block", self.block)
        check_count("window_blocks", self.window_blocks, 1)
        check_count("global_blocks", self.global_blocks, 0)
        check_count("random_blocks", self.random_blocks, 0)

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`."""
        return planned(q, k, problem, scale, (self.block, self.block), self._keep)

    def turned(self, dial: float, kv_len: int) -> BigBird:
        """The published proportion of blocks; at 1 each kind could fill the prompt."""
        least = min(self.window_blocks, self.global_blocks, self.random_blocks)
        factor = dial * 2 * -(-kv_len // self.block) / max(1, least)
        return replace(
            self,
            window_blocks=max(1, round(factor * self.window_blocks)),
            global_blocks=round(factor * self.global_blocks),
            random_blocks=round(factor * self.random_blocks),
        )

    def _keep(self, heads: Heads) -> Tensor:
        blocks = -(-heads.kv_len // self.block)
        c = torch.arange(blocks, device=heads.k.device)
        i = c[heads.offset // self.block :, None]
        at_start, at_end = self.global_blocks - self.global_blocks // 2, self.global_blocks // 2
        kept = (i - c <= self.window_blocks // 2) | (c < at_start) | (i >= blocks - at_end)
        h = torch.arange(heads.first, heads.first + len(heads.q), device=heads.k.device)
        drawn = _shuffled(h[:, None, None], i, c, self.seed).masked_fill_((c > i) | kept, -1)
        best = drawn.topk(min(self.random_blocks, blocks), -1)
        others = torch.zeros_like(drawn, dtype=torch.bool)
        return others.scatter_(-1, best.indices, best.values >= 0) | kept


def _shuffled(h: Tensor, i: Tensor, c: Tensor, seed: int) -> Tensor:
    """A number in [0, 2**31) that looks random, for every head, block of rows and block of keys."""
    x = torch.zeros((), dtype=torch.int64, device=c.device) + seed % 2**31
    for part in (h, i, c, 0):
        x = ((x ^ part) * 1103515245 + 12345) % 2**31  # the generator of C's rand()
        x = x ^ (x >> 15)
    return x
