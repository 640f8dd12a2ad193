"""Selection by Triton kernels, on the device: the host never waits."""

from __future__ import annotations

from torch import Tensor

from ...config import SampleAttentionConfig
from ...kernels.device import TILE_SIZES, triton_refusal
from ...plan import StripePlan
from ...problem import Problem

MOST_PROBES = 4096
"""Largest `probes`: one program holds what they found."""


class TritonSelection:
    """Takes segments of any size."""

    name = "triton"

    def refusal(self, problem: Problem, config: SampleAttentionConfig) -> str | None:
        """See `SelectionEngine.refusal`."""
        return _config_refusal(config) or triton_refusal(problem)

    def select(
        self, q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, scale: float
    ) -> StripePlan:
        """See `SelectionEngine.select`."""
        from .select import select

        return select(q, k, problem, config, scale)


def _config_refusal(config: SampleAttentionConfig) -> str | None:
    if config.chunk_tails and config.key_block not in TILE_SIZES:
        return f"key_block {config.key_block}; accepted: {', '.join(map(str, TILE_SIZES))}"
    if config.spread and config.probes is None:
        return f"spread without probes; accepted: probes of 16 to {MOST_PROBES}"
    if config.spread and (config.probes or 0) > MOST_PROBES:
        return f"{config.probes} probes; accepted: up to {MOST_PROBES}"
    return None


engine = TritonSelection()
