"""Dense or sparse? Measured crossovers, from host numbers alone; the answer has its reason."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from ..errors import InvalidConfig

Policy: TypeAlias = Literal["auto", "dense", "sparse"]
"""Who decides: the crossovers; nobody, all sequences run dense; nobody, all run sparse."""

POLICIES = ("auto", "dense", "sparse")


class Verdict(NamedTuple):
    """Whether a sequence runs sparse, and why in one clause for people."""

    sparse: bool
    reason: str


@dataclass(frozen=True, eq=False)
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
"""One row per device kind that was measured; `auto` runs dense on any other."""


def check_policy(policy: str) -> None:
    """Check a policy.

    Raises:
        InvalidConfig: it is none.
    """
    if policy not in POLICIES:
        raise InvalidConfig(f"unknown policy {policy!r}; accepted: {', '.join(POLICIES)}")


@functools.lru_cache(maxsize=1024)
def decide(
    policy: Policy, device_type: str, crossover: Crossover | None, q_len: int, kv_len: int
) -> Verdict:
    """The verdict on one sequence of `q_len` queries and `kv_len` keys.

    Args:
        policy: checked before.
        device_type: of the tensors.
        crossover: of that kind of device; None: it was not measured.
        q_len: queries.
        kv_len: keys.
    """
    if policy != "auto":
        decoding = policy == "sparse" and q_len == 1
        reason = "one query is decoding" if decoding else f"policy {policy!r}"
        return Verdict(policy == "sparse" and not decoding, reason)
    if crossover is None:
        return Verdict(sparse=False, reason=f"where sparse pays was not measured on {device_type}")
    if q_len < crossover.min_q_len:
        reason = f"{q_len} queries: sparse pays from {crossover.min_q_len} up"
        return Verdict(sparse=False, reason=reason)
    if kv_len < crossover.min_kv_len:
        reason = f"{kv_len} keys: sparse pays from {crossover.min_kv_len} up"
        return Verdict(sparse=False, reason=reason)
    reason = f"{q_len} queries on {kv_len} keys: sparse pays from {crossover.min_kv_len} up"
    return Verdict(sparse=True, reason=reason)
