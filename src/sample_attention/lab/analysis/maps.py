"""One head's attention and plan, reduced to a grid: what pictures are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InvalidInput
from ...plan import StripePlan, window_edge
from ...problem import Problem
from .probabilities import row_probabilities

MAX_ROWS = 2048
"""Most rows that a map reads; longer spans are read at evenly spaced rows."""


@dataclass(frozen=True)
class HeadMap:
    """A part of one head's rows and keys as a grid; tensors are fp32 `[cells, cells]`, on the CPU.

    Attributes:
        rows: first and past-the-last position of the rows.
        keys: first and past-the-last position of the keys.
        probability: the largest probability in the cell.
        causal: share of the cell's pairs that are causal.
        window: share of its causal pairs that the plan computes for the window.
        columns: share that it computes for a column.
        dense: share that it computes because all of the row is dense.
    """

    rows: tuple[int, int]
    keys: tuple[int, int]
    probability: Tensor
    causal: Tensor
    window: Tensor
    columns: Tensor
    dense: Tensor


def head_map(
    q: Tensor, k: Tensor, plan: StripePlan, h: int, *,
    rows: tuple[int, int] | None = None, keys: tuple[int, int] | None = None, cells: int = 512,
    scale: float | None = None,
) -> HeadMap:  # fmt: skip
    """Reduce the attention and the plan of head `h` of the first sequence to a grid.

    Args:
        q: `[B, H, Sq, D]`, or `[T, H, D]` where the plan's sequences are packed.
        k: `[B, Hkv, Skv, D]` or `[T, Hkv, D]`.
        plan: made for these tensors.
        h: query head.
        rows: positions of the rows, in `[offset, Skv)`; None: all.
        keys: positions of the keys, in `[0, Skv)`; None: all.
        cells: at most this many cells per side.
        scale: multiplies q.k; None: `D ** -0.5`.

    Raises:
        InvalidInput: a span that is empty or outside the sequence.
    """
    problem = Problem.of(q, k, k, plan.sequences)
    plan.check_covers(problem)
    _, _, q_len, _, kv_len = problem.sequences.rows()[0]
    offset = kv_len - q_len
    rows = _span("rows", rows or (offset, kv_len), offset, kv_len)
    keys = _span("keys", keys or (0, kv_len), 0, kv_len)
    count = min(MAX_ROWS, rows[1] - rows[0])
    read = rows[0] + torch.arange(count, device="cpu") * (rows[1] - rows[0]) // count
    place = torch.arange(*keys, device="cpu")
    high, wide = min(cells, count), min(cells, len(place))
    row_cell = torch.arange(count, device="cpu") * high // count
    key_cell = torch.arange(len(place), device="cpu") * wide // len(place)
    grid = torch.zeros(high, wide, device="cpu")
    totals = [grid.clone() for _ in range(5)]  # all pairs, causal, window, column, dense
    at = (read - offset).to(q.device)
    for part, prob in row_probabilities(q, k, problem, at, n=0, h=h, scale=scale):
        kinds = _kinds(plan, h, read[part], place, offset)
        for total, pairs in zip(totals, (torch.ones_like(kinds[0]), *kinds), strict=True):
            by_key = torch.zeros(len(pairs), wide, device="cpu").index_add_(
                1, key_cell, pairs.float()
            )
            total.index_add_(0, row_cell[part], by_key)
        local = prob[:, slice(*keys)].float().cpu()
        peak = torch.zeros(len(local), wide, device="cpu")
        peak.scatter_reduce_(1, key_cell.expand_as(local), local, "amax")
        grid.scatter_reduce_(0, row_cell[part, None].expand_as(peak), peak, "amax")
    pairs, causal = totals[0], totals[1]
    shares = [kind / causal.clamp(min=1) for kind in totals[2:]]
    return HeadMap(rows, keys, grid, causal / pairs.clamp(min=1), *shares)


def _kinds(
    plan: StripePlan, h: int, p: Tensor, keys: Tensor, offset: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs that are causal, of the window, of a column alone, of dense rows: bool `[R, K]`."""
    device = plan.indices.device
    allowed = plan.allows(0, h, (p - offset).to(device), keys.to(device)).cpu()
    causal = keys <= p[:, None]
    edge = window_edge(p, int(plan.window[0]), plan.window_alignment)
    window = causal & (keys >= edge[:, None])
    whole = plan.dense[0, h].cpu()[p // plan.segment - offset // plan.segment]
    kv_len = plan.sequences.rows()[0].kv_len
    dense = causal & (whole | (p >= kv_len - plan.dense_tail))[:, None] & ~window
    return causal, window, allowed & ~window & ~dense, dense


def _span(name: str, span: tuple[int, int], low: int, high: int) -> tuple[int, int]:
    if not low <= span[0] < span[1] <= high:
        raise InvalidInput(f"{name} {span} must be a span inside ({low}, {high})")
    return span
