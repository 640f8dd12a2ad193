"""The rule of arXiv v1: one set of columns for every row, from rows at equal distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import PaperConfig
from .attend import positions, probabilities, sampled


def select_paper(q: Tensor, k: Tensor, rule: PaperConfig, scale: float | None = None) -> Tensor:
    """The mask that the rule selects: bool `[H, Sq, Skv]`.

    A key is kept in the window, in the rows of the dense tail, and in the columns that hold
    `coverage` of the mean mass of the sampled rows.
    """
    (p, j), kv_len = positions(q, k), k.shape[1]
    causal = (j <= p).expand(q.shape[0], -1, -1)
    rows = sampled(p, rule.sample_stride)
    if rule.dense or not bool(rows.any()):
        return causal
    window = j > p - math.ceil(rule.window_ratio * kv_len)
    in_tail = p >= kv_len - rule.dense_tail
    mass = probabilities(q, k, scale)[:, rows].mean(1)
    columns = torch.stack([fewest_holding(m, rule.coverage * m.sum()) for m in mass])
    return causal & (window | in_tail | columns[:, None])


def fewest_holding(mass: Tensor, need: Tensor) -> Tensor:
    """The fewest entries of `mass` `[K]` whose sum reaches `need`: bool `[K]`."""
    order = mass.argsort(descending=True, stable=True)
    before = mass[order].cumsum(0) - mass[order]
    keep = torch.zeros_like(mass, dtype=torch.bool)
    keep[order] = before < need
    return keep
