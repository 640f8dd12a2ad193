"""v1 on the device: one set of columns for all rows, from rows at equal distances."""

from __future__ import annotations

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from .filtering import Lists, fewest
from .mass import Keys, column_mass, row_lse
from .rows import strided, window_edges


def select_whole(
    q: Tensor, keys: Keys, config: SampleAttentionConfig, lists: Lists, window: Tensor
) -> None:
    """The fewest columns that hold the share of the mass of all sampled rows."""
    problem = keys.problem
    rows = strided(q, problem, config, 1)
    edges = rows.position + 1
    if config.residual:
        edges = window_edges(rows.position, window, config)
    shape = (*lists.counts.shape, problem.sequences.max_kv_len)
    mass = torch.empty(shape, dtype=torch.float32, device=q.device)
    column_mass(rows, row_lse(rows, keys), edges, keys, lists, range(1), mass)
    absent = torch.arange(shape[-1], device=q.device) >= problem.sequences.table[:, 4, None]
    mass.masked_fill_(absent[:, None, None], 0.0)
    outside = mass.sum(-1)
    need = config.coverage - (1 - outside) if config.residual else config.coverage * outside
    lists.dense |= ~outside.isfinite()
    lists.keep(fewest(mass, need), range(1))
