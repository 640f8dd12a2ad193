"""StreamingLLM: the first keys and a window, for every head and every input.

Rule: row p keeps j < sinks and j > p - window. Published for decoding from a cache of 4 + 2000
keys with positions counted within the cache; as an attention mask with the positions of the model
it is the baseline of the papers on sparse prefill. A-shape of MInference is the same mask with 128
sinks and a window of 3968 keys.

Source: arXiv 2309.17453 and mit-han-lab/streaming-llm (`start_size` 4, `recent_size` 2000);
A-shape: arXiv 2407.02490 and microsoft/MInference (`n_init` 128, `n_local` 3968).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..config.checks import check_count
from ..plan import StripePlan
from ..plan.stripe import WHOLE
from ..problem import Problem
from .heads import heads_of
from .method import Method


@dataclass(frozen=True)
class StreamingLLM(Method):
    """Sinks and a window.

    Attributes:
        sinks: first keys, which every row keeps.
        window: latest keys that a row keeps, itself included.
    """

    sinks: int = 4
    window: int = 2000
    knob: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        """Check ranges."""
        check_count("sinks", self.sinks, 0)
        check_count("window", self.window, 1)

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`; one list serves all heads."""
        shape = (len(problem.sequences.table), problem.num_heads, 1)
        finite = [
            torch.cat([heads.finite for heads in heads_of(q, k, problem, n, scale, 1)])
            for n in range(shape[0])
        ]
        sinks = problem.sequences.table[:, 4].clamp(max=self.sinks)
        return StripePlan(
            indices=torch.arange(self.sinks, dtype=torch.int32, device=q.device),
            offsets=torch.zeros(shape, dtype=torch.int64, device=q.device),
            counts=sinks[:, None, None].expand(shape).contiguous(),
            dense=~torch.stack(finite)[..., None],
            sequences=problem.sequences, segment=WHOLE,
            window=torch.full(shape[:1], self.window, dtype=torch.int32, device=q.device),
        )  # fmt: skip

    def turned(self, dial: float, kv_len: int) -> StreamingLLM:
        """The window as a share of the keys."""
        return replace(self, window=max(1, round(dial * kv_len)))
