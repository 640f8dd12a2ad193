"""Which query rows stage 1 scores, as tensors on the device: strided, mean queries, tails, listed.

Made from the table of sequences by elementwise operations: nothing waits for the device, and a
graph replays them. The rows of a segment are padded to a power of two, or to whole tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan.stripe import WHOLE
from ...problem import Problem
from ...selection.rows import TAIL_ROWS

TILE_ROWS = 128
"""Scored rows in one tile of the kernels."""


@dataclass(frozen=True)
class ScoredRows:
    """Rows of q, or mean queries, by segment.

    Attributes:
        q: `[B, H, S, D]`, what `at` points into; mean queries: `[N, H, G * R, D]`.
        at: int32 `[N, G, R]`, the row of `q`; -1: none.
        position: int32 `[N, G, R]`, last key that the row sees; does not fall along G, R.
        by_sequence: the first dimension of `q` counts sequences, not batch rows.
    """

    q: Tensor
    at: Tensor
    position: Tensor
    by_sequence: bool = False

    @property
    def per_segment(self) -> int:
        """R: rows of a segment, padding included."""
        return self.at.shape[2]

    def share(self) -> Tensor:
        """One over the rows of each segment, infinity where there is none: fp32 `[N, G]`."""
        return (self.at >= 0).sum(-1).float().reciprocal()


def strided(q: Tensor, problem: Problem, config: SampleAttentionConfig, segments: int) -> ScoredRows:
    """The positions p with `p % row_stride == row_stride // 2`."""
    stride = config.row_stride
    offset, kv_len = _extent(problem)
    if config.segment is None:
        start, size = offset // stride * stride, WHOLE
        count = -(-problem.sequences.max_q_len // stride) + 1
    else:
        start, size = _starts(offset, config.segment, segments), config.segment
        count = size // stride
    r = _steps(_padded(count), q.device)
    p = start + r * stride + stride // 2
    stop = torch.minimum(start + size, kv_len)
    there = (p >= offset) & (p < stop) & (r < count)
    q_start = problem.sequences.table[:, 1, None, None]
    at = torch.where(there, q_start + p - offset, -1)
    return ScoredRows(q, at, torch.minimum(torch.maximum(p, offset), stop - 1))


def pools(problem: Problem, config: SampleAttentionConfig, segments: int) -> tuple[Tensor, Tensor]:
    """First row of each pool, and the row past its last, as positions: int32 `[N, G, R]` each.

    The first do not fall along G, R. The second is 0 where a segment has fewer pools.
    """
    size, pool = config.segment or WHOLE, config.pool or WHOLE
    offset, kv_len = _extent(problem)
    start = _starts(offset, size, segments)
    stop = torch.minimum(start + size, kv_len)
    r = _steps(_padded(size // pool), kv_len.device)
    low = torch.maximum(start + r * pool, offset)
    high = torch.minimum(start + r * pool + pool, stop)
    high = torch.where((low < high) & (r < size // pool), high, 0)
    return torch.minimum(low, stop - 1), high


def mean_queries(means: Tensor, low: Tensor, high: Tensor) -> ScoredRows:
    """The means of `pools`, each seeing the keys up to the first row of its pool."""
    index = torch.arange(low[0].numel(), dtype=torch.int32, device=low.device).view(low.shape[1:])
    return ScoredRows(means, torch.where(high > 0, index, -1), low, by_sequence=True)


def tails(q: Tensor, problem: Problem, num_chunks: int) -> ScoredRows:
    """The last rows of each of `num_chunks` equal chunks of the call; G counts chunks."""
    offset, kv_len = _extent(problem)
    q_len = kv_len - offset
    c = _steps(num_chunks, q.device)[:, None]
    chunks = q_len.clamp(max=num_chunks)  # more chunks than rows: every row is one
    start, stop = (((c + i).long() * q_len // chunks).int() + offset for i in (0, 1))
    p = stop - TAIL_ROWS + _steps(TAIL_ROWS, q.device)
    q_start = problem.sequences.table[:, 1, None, None]
    at = torch.where((p >= start) & (c < chunks), q_start + p - offset, -1)
    return ScoredRows(q, at, torch.minimum(p.clamp(min=0), kv_len - 1))


def listed(q: Tensor, problem: Problem, rows: Tensor) -> ScoredRows:
    """Rows given by their number within the call: int32 `[N, G, R]`, -1 for none."""
    offset, _ = _extent(problem)
    q_start = problem.sequences.table[:, 1, None, None]
    return ScoredRows(q, torch.where(rows >= 0, q_start + rows, -1), rows.clamp(min=0) + offset)


def window_edges(position: Tensor, window: Tensor, config: SampleAttentionConfig) -> Tensor:
    """First key of the window of the rows at `position` `[N, ...]`, or 0: columns lie left of it."""
    aligned = position // config.window_alignment * config.window_alignment
    return (aligned - window.view(-1, *[1] * (position.dim() - 1)) + 1).clamp_(min=0)


def segment_ends(problem: Problem, size: int, segments: int) -> Tensor:
    """Position after each segment's last row, whether or not the call gets there: `[N, G]`."""
    offset, _ = _extent(problem)
    return (_starts(offset, size, segments) + size)[..., 0]


def _extent(problem: Problem) -> tuple[Tensor, Tensor]:
    """Position of the first query, and the number of keys: int32 `[N, 1, 1]` each."""
    table = problem.sequences.table
    kv_len = table[:, 4, None, None]
    return kv_len - table[:, 2, None, None], kv_len


def _starts(offset: Tensor, size: int, segments: int) -> Tensor:
    """Where each segment starts, before the first query too: int32 `[N, G, 1]`."""
    return (offset // size + _steps(segments, offset.device)[:, None]) * size


def _steps(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device)


def _padded(count: int) -> int:
    if count > TILE_ROWS:
        return -(-count // TILE_ROWS) * TILE_ROWS
    return 1 << (count - 1).bit_length()
