"""Attention over a plan's pairs: gather the columns, call fused attention, merge by lse.

Rows are taken in tiles inside one segment. Every row of a tile sees the same keys left of the tile
(`shared`: listed columns, then the common part of the window) without a mask; the last keys,
where rows differ (`edge`: the causal diagonal, or a window edge that moves with the row), get one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...plan import StripePlan, segment_starts
from ...problem import Problem
from .flash import attention_with_lse, merge

TILE_ROWS = 256
"""Rows per tile where every row has its own window edge."""


@dataclass(frozen=True)
class Tile:
    """Consecutive rows [lo, hi) (absolute positions) of one segment and head.

    Attributes:
        lo: first row.
        hi: past the last row.
        columns: sorted int64 keys of the list, or None where every key is attended.
    """

    lo: int
    hi: int
    columns: Tensor | None


def attend(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
) -> tuple[Tensor, Tensor]:
    """Out like q and natural lse `[B, H, Sq]` for q `[B, H, Sq, D]`, k and v `[B, Hkv, Skv, D]`."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.full(q.shape[:3], -torch.inf, dtype=exact, device=q.device)
    for n, (b, q0, q_len, k0, kv_len) in enumerate(problem.sequences.rows()):
        for kv_head in range(problem.num_kv_heads):
            both = torch.cat([k[b, kv_head, k0 : k0 + kv_len], v[b, kv_head, k0 : k0 + kv_len]], -1)
            for h in range(kv_head * problem.group_size, (kv_head + 1) * problem.group_size):
                rows = slice(q0, q0 + q_len)
                offset = kv_len - q_len
                for tile in _tiles(plan, n, h, offset, kv_len):
                    at = slice(rows.start + tile.lo - offset, rows.start + tile.hi - offset)
                    _attend_tile(
                        q[b, h, at], both, tile, int(plan.window[n]), plan.window_alignment,
                        scale, out[b, h, at], lse[b, h, at],
                    )  # fmt: skip
    return out, lse


def _tiles(plan: StripePlan, n: int, h: int, offset: int, kv_len: int) -> Iterator[Tile]:
    """Tiles of one head; neighbouring dense segments become one tile."""
    tail = max(offset, kv_len - plan.dense_tail)
    dense_from: int | None = None
    dense, starts = plan.dense[n, h].tolist(), plan.offsets[n, h].tolist()
    counts = plan.counts[n, h].tolist()
    for g, (lo, hi) in enumerate(segment_starts(offset, kv_len, plan.segment)):
        if dense[g]:
            dense_from = lo if dense_from is None else dense_from
            continue
        if dense_from is not None:
            yield Tile(dense_from, lo, None)
            dense_from = None
        columns = plan.indices[starts[g] : starts[g] + counts[g]].long()
        if plan.key_block > 1:
            within = torch.arange(min(plan.key_block, kv_len), device=columns.device)
            columns = (columns[:, None] * plan.key_block + within).flatten()
        yield from _split(lo, min(hi, tail), columns, plan.window_alignment)
        if hi > tail:
            dense_from = max(lo, tail)
    if dense_from is not None:
        yield Tile(dense_from, kv_len, None)


def _split(lo: int, hi: int, columns: Tensor, align: int) -> Iterator[Tile]:
    """Rows [lo, hi) cut where the edge of the window moves."""
    height = align if align > 1 else TILE_ROWS
    while lo < hi:
        stop = min(hi, lo // height * height + height)
        yield Tile(lo, stop, columns)
        lo = stop


def _attend_tile(
    q: Tensor, both: Tensor, tile: Tile, window: int, align: int, scale: float,
    out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    """Attention of rows q `[R, D]` on `both` = keys | values `[Skv, 2 D]`, into out and lse."""
    dim = q.shape[-1]
    shared_to, mask = _edge(tile, window, align, q.device)
    if tile.columns is None:
        shared = both[:shared_to]
    else:
        start = max(0, min(tile.lo // align * align - window + 1, shared_to))
        columns = tile.columns[: int(torch.searchsorted(tile.columns, start))]
        local = torch.arange(start, shared_to, device=q.device)
        shared = both.index_select(0, torch.cat([columns, local]))
    edge = both[shared_to : tile.hi]
    rows = q[None, None]
    edge_out, edge_lse = attention_with_lse(
        rows, edge[None, None, :, :dim], edge[None, None, :, dim:], scale,
        causal=mask is None, mask=mask,
    )  # fmt: skip
    out.copy_(edge_out[0, 0])
    lse.copy_(edge_lse[0, 0])
    if len(shared):
        more, more_lse = attention_with_lse(
            rows, shared[None, None, :, :dim], shared[None, None, :, dim:], scale
        )
        merge(out, lse, more[0, 0], more_lse[0, 0])


def _edge(tile: Tile, window: int, align: int, device: torch.device) -> tuple[int, Tensor | None]:
    """First key from which rows of the tile differ, and their mask there (None: plain causal)."""
    lo, hi = tile.lo, tile.hi
    if tile.columns is None or (align > 1 and window > 0):
        return lo, None
    first = max(0, min(lo // align * align - window + 1, lo))
    p = torch.arange(lo, hi, device=device)[:, None]
    j = torch.arange(first, hi, device=device)[None]
    listed = torch.isin(j[0], tile.columns)
    return first, (j <= p) & ((j > p // align * align - window) | listed)
