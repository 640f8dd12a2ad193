"""Dense or sparse? Measured crossovers; the answer comes with its reason."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator
from dataclasses import dataclass

from ..config import Config
from ..problem import Problem
from ..selection.rule import FixedRule


@dataclass(frozen=True)
class Decision:
    """Whether a call runs sparse, and why.

    Attributes:
        sparse: select and attend to a plan; else dense attention.
        reason: one clause for people.
    """

    sparse: bool
    reason: str


@dataclass(frozen=True)
class Crossover:
    """Where sparse begins to pay on a kind of device.

    Attributes:
        min_kv_len: keys from which the whole operation is faster than dense.
        min_q_len: queries from which it is; fewer is decoding, or a short last chunk.
        measured: the record behind the row.
    """

    min_kv_len: int
    min_q_len: int
    measured: str


CROSSOVERS = {
    "cpu": Crossover(6144, 128, "benchmarks/records/cpu_attention.jsonl"),
    "cuda": Crossover(16384, 1024, "benchmarks/records/h100_ttft.jsonl"),
}
"""One row per device kind that was measured; `sample_attention` runs dense on any other."""


def decide(problem: Problem, rule: FixedRule) -> Decision:
    """Choose for a whole call, from facts known on the host."""
    if isinstance(rule, Config) and rule.dense:
        return Decision(sparse=False, reason="coverage 1 keeps every key")
    row = CROSSOVERS.get(problem.device.type)
    if row is None:
        kind = problem.device.type
        return Decision(sparse=False, reason=f"where sparse pays was not measured on {kind}")
    sequences = problem.sequences
    return _decide(sequences.max_q_len, sequences.max_kv_len, row.min_q_len, row.min_kv_len)


@contextlib.contextmanager
def always_sparse() -> Generator[None]:
    """Within the block every prompt runs sparse, on any device: to measure answers, not time."""
    before = dict(CROSSOVERS)
    CROSSOVERS.update(dict.fromkeys({*before, "cpu", "cuda"}, Crossover(1, 2, "always_sparse")))
    try:
        yield
    finally:
        CROSSOVERS.clear()
        CROSSOVERS.update(before)


@functools.lru_cache(maxsize=256)
def _decide(queries: int, keys: int, min_queries: int, min_keys: int) -> Decision:
    if queries < min_queries:
        reason = f"{queries} queries: sparse pays from {min_queries} up"
    elif keys < min_keys:
        reason = f"{keys} keys: sparse pays from {min_keys} up"
    else:
        reason = f"{queries} queries on {keys} keys: sparse pays from {min_keys} up"
        return Decision(sparse=True, reason=reason)
    return Decision(sparse=False, reason=reason)
