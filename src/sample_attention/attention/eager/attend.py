"""Attention over a plan's pairs: gather the columns, call fused attention, merge by lse.

Rows are taken in tiles inside one segment. Every row of a tile sees the same keys left of the tile
(`shared`: listed columns, then the common part of the window) without a mask; the last keys,
where rows differ (`edge`: the causal diagonal, or a window edge that moves with the row), get one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

import torch
from torch import Tensor

from ...dense.flash import attention_with_lse, merge
from ...kernels.parallel import Task, run_all
from ...plan import StripePlan, segment_starts, window_edge
from ...problem import Problem, keys_of

TILE_ROWS = 256
"""Rows per tile where every row has its own window edge."""

DENSE_ROWS = 1024
"""Rows per tile where every key is attended."""

TILES_PER_TASK = 8
"""Tiles that one worker takes at once."""


@dataclass(frozen=True)
class Tile:
    """Consecutive rows [lo, hi) (absolute positions) of one segment and head.

    Attributes:
        lo: first row.
        hi: past the last row.
        columns: sorted int32 keys of the list, or None where every key is attended.
    """

    lo: int
    hi: int
    columns: Tensor | None


@dataclass(frozen=True)
class HeadPart:
    """One head of one sequence, with where its results go.

    Attributes:
        q: `[Sq, D]`.
        both: `[Skv, 2 D]`, keys beside values, so that one gather fetches both.
        positions: int32 `[Skv]`, 0, 1, 2, ...
        offset: position of the first query.
        window: keys that a row keeps locally.
        align: rows that share one left edge of the window.
        scale: multiplies q.k.
        out: `[Sq, D]`, written.
        lse: `[Sq]`, written.
    """

    q: Tensor
    both: Tensor
    positions: Tensor
    offset: int
    window: int
    align: int
    scale: float
    out: Tensor
    lse: Tensor

    def aligned(self, tile: Tile) -> bool:
        """Whether the tile is one whole run of rows with the same window edge."""
        whole = tile.hi - tile.lo == self.align > 1
        return whole and tile.columns is not None and self.window > 0


def attend(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
) -> tuple[Tensor, Tensor]:
    """Out like q and natural lse `[B, H, Sq]` for q `[B, H, Sq, D]`, k and v `[B, Hkv, Skv, D]`."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.full(q.shape[:3], -torch.inf, dtype=exact, device=q.device)
    run_all(_tasks(q, k, v, problem, plan, scale, (out, lse)), problem.device)
    return out, lse


def _tasks(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float,
    results: tuple[Tensor, Tensor],
) -> Iterator[Task]:  # fmt: skip
    out, lse = results
    for n, (b, q0, q_len, _, kv_len) in enumerate(problem.sequences.rows()):
        rows = slice(q0, q0 + q_len)
        positions = torch.arange(kv_len, dtype=torch.int32, device=q.device)
        for kv_head in range(problem.num_kv_heads):
            both = torch.cat([keys_of(x[:, kv_head], problem.sequences, n) for x in (k, v)], -1)
            for h in range(kv_head * problem.group_size, (kv_head + 1) * problem.group_size):
                part = HeadPart(
                    q[b, h, rows], both, positions, kv_len - q_len, int(plan.window[n]),
                    plan.window_alignment, scale, out[b, h, rows], lse[b, h, rows],
                )  # fmt: skip
                tiles = _tiles(plan, n, h, part)
                for aligned, same in groupby(tiles, part.aligned):
                    work = _attend_run if aligned else _attend_each
                    while some := list(islice(same, TILES_PER_TASK)):
                        yield partial(work, part, some)


def _tiles(plan: StripePlan, n: int, h: int, part: HeadPart) -> Iterator[Tile]:
    """Tiles of one head."""
    offset, kv_len = part.offset, len(part.positions)
    tail = max(offset, kv_len - plan.dense_tail)
    dense, starts = plan.dense[n, h].tolist(), plan.offsets[n, h].tolist()
    counts = plan.counts[n, h].tolist()
    dense_from: int | None = None
    for g, (lo, hi) in enumerate(segment_starts(offset, kv_len, plan.segment)):
        if dense[g]:
            dense_from = lo if dense_from is None else dense_from
            continue
        if dense_from is not None:  # neighbouring dense segments share their tiles
            yield from _split(dense_from, lo, None, DENSE_ROWS)
            dense_from = None
        columns = plan.indices[starts[g] : starts[g] + counts[g]]
        if plan.key_block > 1:
            within = part.positions[: plan.key_block]
            columns = (columns[:, None] * plan.key_block + within).flatten()
        height = plan.window_alignment if plan.window_alignment > 1 else TILE_ROWS
        yield from _split(lo, min(hi, tail), columns, height)
        if hi > tail:
            dense_from = max(lo, tail)
    if dense_from is not None:
        yield from _split(dense_from, kv_len, None, DENSE_ROWS)


def _split(lo: int, hi: int, columns: Tensor | None, height: int) -> Iterator[Tile]:
    """Rows [lo, hi) cut at multiples of the tile height."""
    while lo < hi:
        stop = min(hi, lo // height * height + height)
        yield Tile(lo, stop, columns)
        lo = stop


def _attend_run(part: HeadPart, tiles: list[Tile]) -> None:
    """Consecutive aligned tiles: one call for all diagonals, one for each tile's other keys."""
    dim, rows = part.q.shape[-1], slice(tiles[0].lo - part.offset, tiles[-1].hi - part.offset)
    q = part.q[rows].view(len(tiles), 1, part.align, dim)
    square = part.both[tiles[0].lo : tiles[-1].hi].view(len(tiles), 1, part.align, 2 * dim)
    out, lse = attention_with_lse(q, square[..., :dim], square[..., dim:], part.scale, causal=True)
    more, more_lse = torch.zeros_like(out), torch.full_like(lse, -torch.inf)
    for i, tile in enumerate(tiles):
        keys = _shared(part, tile, tile.lo)
        if len(keys):
            k, v = keys[None, None, :, :dim], keys[None, None, :, dim:]
            more[i], more_lse[i] = attention_with_lse(q[i : i + 1], k, v, part.scale)
    merge(out, lse, more, more_lse)
    part.out[rows] = out.view(-1, dim)
    part.lse[rows] = lse.view(-1)


def _attend_each(part: HeadPart, tiles: list[Tile]) -> None:
    """Tiles of any shape, one by one."""
    dim = part.q.shape[-1]
    for tile in tiles:
        at = slice(tile.lo - part.offset, tile.hi - part.offset)
        shared_to, mask = _edge(tile, part)
        q, edge = part.q[None, None, at], part.both[None, None, shared_to : tile.hi]
        out, lse = attention_with_lse(
            q, edge[..., :dim], edge[..., dim:], part.scale, causal=mask is None, mask=mask
        )
        keys = _shared(part, tile, shared_to)
        if len(keys):
            k, v = keys[None, None, :, :dim], keys[None, None, :, dim:]
            merge(out, lse, *attention_with_lse(q, k, v, part.scale))
        part.out[at], part.lse[at] = out[0, 0], lse[0, 0]


def _shared(part: HeadPart, tile: Tile, shared_to: int) -> Tensor:
    """Keys beside values that every row of the tile sees left of `shared_to`: `[K, 2 D]`."""
    if tile.columns is None:
        return part.both[:shared_to]
    start = max(0, min(window_edge(tile.lo, part.window, part.align), shared_to))
    columns = tile.columns
    if len(columns) and int(columns[-1]) >= start:  # a long segment lists keys of later windows
        columns = columns[: int(torch.searchsorted(columns, start))]
    return part.both.index_select(0, torch.cat([columns, part.positions[start:shared_to]]))


def _edge(tile: Tile, part: HeadPart) -> tuple[int, Tensor | None]:
    """First key from which rows of the tile differ, and their mask there (None: plain causal)."""
    lo, hi, window, align = tile.lo, tile.hi, part.window, part.align
    if tile.columns is None or (align > 1 and window > 0):
        return lo, None
    first = max(0, min(window_edge(lo, window, align), lo))
    p, j = part.positions[lo:hi, None], part.positions[None, first:hi]
    listed = torch.isin(j[0], tile.columns)
    return first, (j <= p) & ((j >= window_edge(p, window, align)) | listed)
