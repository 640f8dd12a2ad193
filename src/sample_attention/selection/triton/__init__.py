"""Selection by Triton kernels, on the device: the host never waits."""

from __future__ import annotations

from torch import Tensor

from ...config import Config, MlsysConfig, QueryMoments, SampleAttentionConfig
from ...kernels.device import TILE_SIZES, triton_refusal
from ...plan import StripePlan
from ...problem import Problem

MOST_SAMPLED_KEYS = 4096
"""Largest `sampled_keys`: one program holds what they found."""


class TritonSelection:
    """Takes segments of any size."""

    name = "triton"

    def refusal(self, problem: Problem, config: Config) -> str | None:
        """See `SelectionEngine.refusal`."""
        return _config_refusal(config) or triton_refusal(problem)

    def select(
        self, q: Tensor, k: Tensor, problem: Problem, config: Config, scale: float
    ) -> StripePlan:
        """See `SelectionEngine.select`."""
        from .select import select

        return select(q, k, problem, config, scale)


def _config_refusal(config: Config) -> str | None:
    if isinstance(config, MlsysConfig) and config.key_block not in TILE_SIZES:
        return f"key_block {config.key_block}; accepted: {', '.join(map(str, TILE_SIZES))}"
    ranking = config.ranking if isinstance(config, SampleAttentionConfig) else None
    if isinstance(ranking, QueryMoments) and ranking.sampled_keys is None:
        return f"sampled_keys=None; accepted: 16 to {MOST_SAMPLED_KEYS}"
    if isinstance(ranking, QueryMoments) and (ranking.sampled_keys or 0) > MOST_SAMPLED_KEYS:
        return f"sampled_keys={ranking.sampled_keys}; accepted: up to {MOST_SAMPLED_KEYS}"
    return None


engine = TritonSelection()
