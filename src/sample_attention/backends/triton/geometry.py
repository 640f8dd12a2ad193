"""What a selection needs to know of a call besides its values: kept from call to call.

The layers of a model select on the same lengths by the same configuration again and again. What
follows from those is a few dozen small operations, and their launches would take longer than the
kernels do on a short prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan.stripe import WHOLE
from ...problem import Problem
from . import rows
from .rows import Pools, RowTable

SCRATCH_BYTES = 2**29
"""Most memory of what is kept per column of segments that are filtered together, about."""

KEPT = 64
"""Geometries that are kept: the last used ones."""


@dataclass(frozen=True)
class Geometry:
    """Facts of the segments of a call.

    Attributes:
        size: rows per segment.
        segments: the most that a sequence has.
        window: int32 `[N]`.
        always: bool `[N, G]`, segments that attend to every key, whatever it is.
        limits: int32 `[N, G]`, columns, or blocks of them, that can be listed.
        exact: the rows that are scored exactly.
        pools: the runs of rows with mean queries; None without `pool`.
        columns: all that the lists of a head could hold, known on the host.
        coverage: fp32 `[H]`, the share that each head keeps.
    """

    size: int
    segments: int
    window: Tensor
    always: Tensor
    limits: Tensor
    exact: RowTable
    pools: Pools | None
    columns: int
    coverage: Tensor


_kept: OrderedDict[object, Geometry] = OrderedDict()


def geometry(problem: Problem, config: SampleAttentionConfig) -> Geometry:
    """The geometry of a call, from an earlier one of the same lengths and heads if there is one."""
    if problem.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _make(problem, config)  # the graph must own what it reads
    s, stream = problem.sequences, None
    if problem.device.type == "cuda":  # another stream would not wait for what made the tensors
        stream = torch.cuda.current_stream(problem.device).cuda_stream
    key = (tuple(s.rows()), s.max_q_len, problem.num_heads, problem.device, stream, config)
    if key not in _kept:
        _kept[key] = _make(problem, config)
        if len(_kept) > KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key]


def _make(problem: Problem, config: SampleAttentionConfig) -> Geometry:
    blocks = config.chunk_tails is not None
    size = config.key_block if blocks else config.segment or WHOLE
    spans = [(kv_len - q_len, kv_len) for _, _, q_len, _, kv_len in problem.sequences.rows()]
    segments = max(-(-hi // size) - lo // size for lo, hi in spans)
    ends = rows.ends(problem, size, segments)
    columns = sum(
        -(-min((g + 1) * size, hi) // config.key_block)
        for lo, hi in spans
        for g in range(lo // size, -(-hi // size))
    )
    exact = rows.tails(problem, config) if blocks else rows.strided(problem, config, segments)
    return Geometry(
        size, segments, rows.windows(problem, config), rows.always(problem, config, ends),
        rows.limits(problem, config, ends), exact,
        None if config.pool is None else rows.pools(problem, config, segments), columns,
        rows.shares(problem, config),
    )  # fmt: skip


def groups(
    problem: Problem, facts: Geometry, column_bytes: int, step: int
) -> Iterator[tuple[range, int]]:
    """Runs of segments, a multiple of `step`, whose scratch fits, and a bound of their columns."""
    s = problem.sequences
    before = max((kv_len - q_len) // facts.size for _, _, q_len, _, kv_len in s.rows())
    lists = len(s.table) * problem.num_heads
    first = 0
    while first < facts.segments:
        last, pitch = first, 0
        while last < facts.segments:
            keys = min((before + last + step) * facts.size, s.max_kv_len)
            wider = -(-keys // 128) * 128
            if pitch and column_bytes * lists * (last + step - first) * wider > SCRATCH_BYTES:
                break
            last, pitch = last + step, wider
        last = min(last, facts.segments)
        yield range(first, last), pitch
        first = last
