"""Which provider runs: the first that accepts.

The order is that of speed. TFLOP/s on an H100 (bf16, 32 query and 8 key/value heads, head dim 128):

| provider | 8K  | 32K | 128K |
|----------|-----|-----|------|
| `fa3`    | 596 | 709 | 706  |
| `fa4`    | 608 | 683 | 630  |
| `cudnn`  | 597 | 683 | 591  |
| `fa2`    | 308 | 359 | 330  |
"""

from __future__ import annotations

import functools

from ..problem import Problem
from .base import DenseProvider, Facts, layout_of
from .flash_attention import FlashAttention3, FlashAttention4
from .fused import CudnnAttention, FlashAttention2
from .sdpa import MergedAttention, SdpaAttention

PROVIDERS: tuple[DenseProvider, ...] = (
    FlashAttention3(),
    FlashAttention4(),
    CudnnAttention(),
    FlashAttention2(),
    SdpaAttention(),
    MergedAttention(),
)


@functools.lru_cache(maxsize=256)
def choose_provider(facts: Facts) -> DenseProvider | None:
    """The first provider that accepts; None: sequences go one at a time."""
    return next((p for p in PROVIDERS if p.refusal(facts) is None), None)


def choose_for_one(facts: Facts, q_len: int, kv_len: int) -> DenseProvider:
    """The provider for one sequence of the call; the last takes any."""
    return choose_provider(facts._replace(layout=layout_of(q_len, kv_len))) or PROVIDERS[-1]


def provider(problem: Problem) -> str:
    """Which provider `dense` runs for a problem; where sequences differ, for the longest."""
    facts, s = Facts.of(problem), problem.sequences
    chosen = choose_provider(facts)
    if chosen is not None:
        return chosen.name
    return f"{choose_for_one(facts, s.max_q_len, s.max_kv_len).name}, one sequence at a time"


def provider_verdicts(problem: Problem) -> dict[str, str]:
    """For every provider `accepted` or the reason of its refusal, by preference."""
    facts = Facts.of(problem)
    return {p.name: p.refusal(facts) or "accepted" for p in PROVIDERS}
