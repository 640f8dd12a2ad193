"""What attending and selecting cost, in the unit of density: shares of dense attention."""

from __future__ import annotations

import torch

from ...config import SampleAttentionConfig
from ..work import (
    Call,
    causal_pairs,
    exact_positions,
    listed_columns,
    outlier_pairs,
    probed_pairs,
)

ROWS_PER_LOAD = 128
"""Rows that share a gathered key in a tile of the kernels for GPUs."""


def attention_cost(config: SampleAttentionConfig, density: float) -> float:
    """Density, with the pairs of small segments weighted by what gathering their keys costs.

    Tiles wait for keys rather than for products, and a segment gathers its own: with segments of
    64 rows a key serves half as many pairs as in a tile of 128.

    Args:
        config: how keys are selected.
        density: computed pairs over causal pairs.
    """
    if config.dense or config.segment is None:
        return density
    return density * max(1.0, ROWS_PER_LOAD / config.segment)


def sampling_density(config: SampleAttentionConfig, length: int) -> float:
    """The products of the selection over those of dense causal attention.

    A row that is scored, sampled or mean query, is scored against its causal keys in two passes
    (normaliser, then mass), each of one product where attention has two: 2 passes x 1/2. So the
    share is (pairs of scored rows) / (causal pairs), about 1 / row_stride + 1 / pool. With `spread`
    every segment has two rows, mean and variance, in one pass, sampled rows see their windows and
    probes alone, and outlier rows are scored once.

    Args:
        config: how keys are selected; nothing is sampled where it keeps every key.
        length: queries and keys of the call.
    """
    if config.dense:
        return 0.0
    call = Call(heads=1, kv_heads=1, length=length, head_dim=1, element=1, config=config)
    if config.spread:
        _, probed, near = probed_pairs(call)
        scored = listed_columns(call) + probed + near + outlier_pairs(call) / 2
        return scored / causal_pairs(call)
    rows = exact_positions(call)
    if config.pool is not None:
        rows = torch.cat([rows, torch.arange(0, length, config.pool, device="cpu")])
    return float((rows + 1).sum()) / causal_pairs(call)
