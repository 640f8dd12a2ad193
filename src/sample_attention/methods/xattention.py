"""XAttention: blocks by the sums of their antidiagonals.

Rule, in blocks of 128. Queries and keys are taken in groups of `stride`; the score of a pair of
groups is the sum of q.k over its antidiagonal (query t from the end with key t from the start),
divided by `stride`. Its causal softmax over the groups of keys, summed per block, ranks the blocks
of each row of blocks: the first block and the row's own always, then the heaviest until all hold
`threshold` of the sum. Rows and keys that are missing at the ends count as zeros.

The paper also searches a threshold for each head of a model offline; of those only the ones of
Llama-3.1-8B were published. The default is what the repository used for Qwen2-VL-7B.

Source: arXiv 2503.16428 and mit-han-lab/x-attention (`Xattention.py`, README: stride 16, threshold
0.9; strides 4 and 8 are published as well).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config.checks import check_count, check_share
from ..errors import InvalidConfig
from ..plan import StripePlan
from ..problem import Problem
from .blocks import check_block, planned
from .heads import Heads
from .method import Method

SCORES_AT_ONCE = 2**27
"""Scores of groups that exist at once; bounds extra memory."""


@dataclass(frozen=True)
class XAttention(Method):
    """Antidiagonal scores and a threshold.

    Attributes:
        stride: rows and keys per group.
        threshold: share of the estimated mass that the blocks of a row hold.
        block: rows and keys of a block.
    """

    stride: int = 16
    threshold: float = 0.9
    block: int = 128
    knob: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        """Check ranges."""
        check_count("stride", self.stride, 1)
        check_share("threshold", self.threshold)
        check_block("block", self.block)
        if self.block % self.stride:
            raise InvalidConfig(f"stride={self.stride} must divide block={self.block}")

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`."""
        return planned(q, k, problem, scale, (self.block, self.block), self._keep)

    def turned(self, dial: float, kv_len: int) -> XAttention:
        """The threshold."""
        del kv_len
        return replace(self, threshold=max(dial, 1e-6))

    def _keep(self, heads: Heads) -> Tensor:
        blocks = -(-heads.kv_len // self.block)
        mass = torch.cat([pad(m, (0, blocks - m.shape[-1])) for m in self._masses(heads)], 1)
        c = torch.arange(blocks, device=mass.device)
        always = (c == 0) | (c == c[heads.offset // self.block :, None])
        need = self.threshold * mass.sum(-1) - (mass * always).sum(-1)
        rest, order = mass.masked_fill(always, 0).sort(-1, descending=True)
        chosen = rest.cumsum(-1) - rest < need[..., None]
        return torch.zeros_like(chosen).scatter_(-1, order, chosen) | always

    def _masses(self, heads: Heads) -> Iterator[Tensor]:
        """Estimated mass per block for some rows of blocks at a time: `[M, R, C]`."""
        first = heads.offset // self.block
        missing = heads.offset - first * self.block
        per_block, width = self.block // self.stride, self.stride * heads.k.shape[-1]
        q = pad(heads.q, (0, 0, missing, -heads.kv_len % self.stride))
        q = q.unflatten(1, (-1, self.stride)).flip(2).flatten(2)
        k = pad(heads.k, (0, 0, 0, -heads.kv_len % self.stride)).view(-1, width)
        rows_at_once = max(1, SCORES_AT_ONCE // (len(q) * len(k) * per_block)) * per_block
        for lo in range(0, q.shape[1], rows_at_once):
            some = q[:, lo : lo + rows_at_once]
            groups = torch.arange(lo, lo + some.shape[1], device=q.device)
            last = first * per_block + lo + some.shape[1]
            scores = some @ k[:last].T * (heads.scale / self.stride)
            hidden = torch.arange(last, device=q.device) > (groups + first * per_block)[:, None]
            prob = torch.softmax(scores.masked_fill_(hidden, -torch.inf), -1)
            prob[:, groups < missing // self.stride] = 0
            whole = pad(prob, (0, -last % per_block, 0, -len(groups) % per_block))
            yield whole.unflatten(2, (-1, per_block)).unflatten(1, (-1, per_block)).sum((2, 4))
