"""Which query rows stage 1 scores, as tensors on the device: strided, mean queries, tails, listed.

Made from the table of sequences by elementwise operations: nothing waits for the device, and a
graph replays them. The rows of a segment are padded to a power of two, or to whole tiles.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan.stripe import WHOLE
from ...problem import Problem
from ..rows import TAIL_ROWS

SCORED_TOGETHER = 128
"""Scored rows in one tile of the kernels."""


@dataclass(frozen=True)
class RowTable:
    """Scored rows by segment.

    Attributes:
        at: int32 `[N, G, R]`, where the row lies in its tensor; -1: no row.
        position: int32 `[N, G, R]`, last key that the row sees; does not fall along G, R.
        edges: int32 `[N, G, R]`, keys from here on are not counted: the row's window, or none.
        share: fp32 `[N, G]`, one over the rows of each segment; infinity where there is none.
        by_sequence: rows lie in a tensor of mean queries `[N, H, G * R, D]`, not in q.
    """

    at: Tensor
    position: Tensor
    edges: Tensor
    share: Tensor
    by_sequence: bool = False

    @property
    def per_segment(self) -> int:
        """R: rows of a segment, padding included."""
        return self.at.shape[2]


@dataclass(frozen=True)
class Pools:
    """Runs of rows that have one mean query each.

    Attributes:
        low: int32 `[N, G, R]`, position of the first row.
        high: int32 `[N, G, R]`, position after the last row; 0 where there is no run.
        rows: the mean queries, each seeing the keys up to the first row of its run.
    """

    low: Tensor
    high: Tensor
    rows: RowTable


def strided(problem: Problem, config: SampleAttentionConfig, segments: int) -> RowTable:
    """The positions p with `p % row_stride == row_stride // 2`."""
    stride = config.row_stride
    offset, kv_len = _extent(problem)
    if config.segment is None:
        start, size = offset // stride * stride, WHOLE
        count = -(-problem.sequences.max_q_len // stride) + 1
    else:
        start, size = _starts(offset, config.segment, segments), config.segment
        count = size // stride
    r = _steps(_padded(count), offset.device)
    p = start + r * stride + stride // 2
    stop = torch.minimum(start + size, kv_len)
    there = (p >= offset) & (p < stop) & (r < count)
    position = torch.minimum(torch.maximum(p, offset), stop - 1)
    return _table(_in_q(p, problem), there, position, problem, config)


def pools(problem: Problem, config: SampleAttentionConfig, segments: int) -> Pools:
    """The aligned runs of `pool` rows of every segment."""
    size, pool = config.segment or WHOLE, config.pool or WHOLE
    offset, kv_len = _extent(problem)
    start = _starts(offset, size, segments)
    stop = torch.minimum(start + size, kv_len)
    r = _steps(_padded(size // pool), offset.device)
    low = torch.maximum(start + r * pool, offset)
    high = torch.minimum(start + r * pool + pool, stop)
    there = (low < high) & (r < size // pool)
    index = _steps(segments * len(r), offset.device).view(1, segments, len(r))
    low = torch.minimum(low, stop - 1)
    rows = _table(index.expand(there.shape), there, low, problem, config, by_sequence=True)
    return Pools(low, torch.where(there, high, 0), rows)


def tails(problem: Problem, config: SampleAttentionConfig) -> RowTable:
    """The last rows of each of `chunk_tails` equal chunks of the call; G counts chunks."""
    offset, kv_len = _extent(problem)
    q_len, most = kv_len - offset, min(config.chunk_tails or 1, problem.sequences.max_q_len)
    c = _steps(most, offset.device)[:, None]
    chunks = q_len.clamp(max=most)  # more chunks than rows: every row is one
    start, stop = (((c + i).long() * q_len // chunks).int() + offset for i in (0, 1))
    p = stop - TAIL_ROWS + _steps(TAIL_ROWS, offset.device)
    position = torch.minimum(p.clamp(min=0), kv_len - 1)
    return _table(_in_q(p, problem), (p >= start) & (c < chunks), position, problem, config)


def listed(problem: Problem, config: SampleAttentionConfig, rows: Tensor) -> RowTable:
    """Rows given by their number within the call: int32 `[N, G, R]`, -1 for none."""
    offset, _ = _extent(problem)
    p = rows.clamp(min=0) + offset
    return _table(_in_q(p, problem), rows >= 0, p, problem, config)


def windows(problem: Problem, config: SampleAttentionConfig) -> Tensor:
    """The window of each sequence, in keys: int32 `[N]`."""
    kv_len = problem.sequences.table[:, 4]
    if config.window_ratio is None:
        return torch.full_like(kv_len, config.window)
    return (kv_len.double() * config.window_ratio).ceil().int()


def ends(problem: Problem, size: int, segments: int) -> Tensor:
    """Position after each segment's last row, whether or not the call gets there: `[N, G]`."""
    offset, _ = _extent(problem)
    return (_starts(offset, size, segments) + size)[..., 0]


def always(problem: Problem, config: SampleAttentionConfig, stops: Tensor) -> Tensor:
    """Segments in the dense prefix or tail, given their `ends`: bool `[N, G]`."""
    kv_len = problem.sequences.table[:, 4, None]
    last = torch.minimum(stops, kv_len)
    return (stops <= config.dense_prefix) | (last > kv_len - config.dense_tail)


def limits(problem: Problem, config: SampleAttentionConfig, stops: Tensor) -> Tensor:
    """Columns that each segment can list, given its `ends`: int32 `[N, G]`, blocks of columns."""
    last = torch.minimum(stops, problem.sequences.table[:, 4, None])
    if config.segment is None:
        return -(-last // config.key_block)
    return _window_edges(last - 1, windows(problem, config), config)


def _table(
    at: Tensor, there: Tensor, position: Tensor, problem: Problem, config: SampleAttentionConfig,
    *, by_sequence: bool = False,
) -> RowTable:  # fmt: skip
    edges = position + 1
    if config.segment is not None or config.residual:
        edges = _window_edges(position, windows(problem, config), config)
    share = there.sum(-1).float().reciprocal()
    at = torch.where(there, at, -1).contiguous()
    return RowTable(at, position.contiguous(), edges.contiguous(), share, by_sequence)


def _window_edges(position: Tensor, window: Tensor, config: SampleAttentionConfig) -> Tensor:
    """First key of the window of the rows at `position` `[N, ...]`; columns lie left of it."""
    aligned = position // config.window_alignment * config.window_alignment
    return (aligned - window.view(-1, *[1] * (position.dim() - 1)) + 1).clamp_(min=0)


def _in_q(p: Tensor, problem: Problem) -> Tensor:
    offset, _ = _extent(problem)
    return problem.sequences.table[:, 1, None, None] + p - offset


def _extent(problem: Problem) -> tuple[Tensor, Tensor]:
    """Position of the first query, and the number of keys: int32 `[N, 1, 1]` each."""
    table = problem.sequences.table
    kv_len = table[:, 4, None, None]
    return kv_len - table[:, 2, None, None], kv_len


def _starts(offset: Tensor, size: int, segments: int) -> Tensor:
    """Where each segment starts, before the first query too: int32 `[N, G, 1]`."""
    return (offset // size + _steps(segments, offset.device)[:, None]) * size


def shares(problem: Problem, config: SampleAttentionConfig) -> Tensor:
    """The coverage of each query head: fp32 `[H]`, filled on the device, which a copy waits for."""
    parts = [
        torch.full((len(list(same)),), share, dtype=torch.float32, device=problem.device)
        for share, same in itertools.groupby(config.coverage_of(problem.num_heads))
    ]
    return torch.cat(parts)


def _steps(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device)


def _padded(count: int) -> int:
    if count > SCORED_TOGETHER:
        return -(-count // SCORED_TOGETHER) * SCORED_TOGETHER
    return 1 << (count - 1).bit_length()
