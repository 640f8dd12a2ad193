"""What a selection needs to know of a call besides its values: kept from call to call.

The layers of a model select on the same lengths by the same configuration again and again. What
follows from those is a few dozen small operations, and their launches would take longer than the
kernels do on a short prompt.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ...config import Config, MlsysConfig, PooledQueries, SampleAttentionConfig, with_fields
from ...problem import Problem
from ...problem.modes import within_mode
from ..geometry import plan_form
from . import row_tables as rows
from .row_tables import Pools, RowTable

SCRATCH_BYTES = 2**29
"""Most memory of what is kept per column of segments that are filtered together, about."""

KEPT = 64
"""Geometries that are kept: the last used ones. Layers that differ in `heads` share one."""

KEPT_COVERAGES = 1024
"""Likewise of the coverages, a few numbers for each layer of a tuned model."""

T = TypeVar("T")


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
        pools: the runs of rows with mean queries; None unless `PooledQueries` rank.
        columns: all that the lists of a head could hold, known on the host.
    """

    size: int
    segments: int
    window: Tensor
    always: Tensor
    limits: Tensor
    exact: RowTable
    pools: Pools | None
    columns: int


_kept: OrderedDict[object, Geometry] = OrderedDict()
_kept_coverages: OrderedDict[object, Tensor] = OrderedDict()


def geometry(problem: Problem, config: Config) -> Geometry:
    """The geometry of a call, from an earlier one of the same lengths if there is one."""
    s, shape = problem.sequences, _without_heads(config)
    key = (tuple(s.rows()), s.max_q_len, problem.num_heads, _where(problem), shape)
    return _recall(_kept, KEPT, key, problem, lambda: _make(problem, shape))


def coverage(problem: Problem, config: Config) -> Tensor:
    """The share that each query head keeps: fp32 `[H]`, from an earlier call if there is one."""
    heads = config.budget.heads if isinstance(config, SampleAttentionConfig) else None
    key = (problem.num_heads, _where(problem), config.coverage, heads)
    return _recall(
        _kept_coverages, KEPT_COVERAGES, key, problem, lambda: rows.shares(problem, config)
    )


@functools.lru_cache(KEPT_COVERAGES)
def _without_heads(config: Config) -> Config:
    return with_fields(config, heads=None) if isinstance(config, SampleAttentionConfig) else config


def _where(problem: Problem) -> tuple[object, ...]:
    """The device and the stream: another stream would not wait for what made the tensors."""
    if problem.device.type != "cuda":
        return (problem.device,)
    return problem.device, torch.cuda.current_stream(problem.device).cuda_stream


def _recall(
    kept: OrderedDict[object, T], most: int, key: object, problem: Problem, make: Callable[[], T]
) -> T:
    """What is kept under a key, made if it is not; of all only the last used stay."""
    if problem.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return make()  # the graph must own what it reads
    if within_mode():
        return make()
    if key not in kept:
        with torch.inference_mode(mode=False):
            kept[key] = make()
        if len(kept) > most:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _make(problem: Problem, config: Config) -> Geometry:
    size, _, key_block, _ = plan_form(config)
    spans = [(kv_len - q_len, kv_len) for _, _, q_len, _, kv_len in problem.sequences.rows()]
    segments = max(-(-hi // size) - lo // size for lo, hi in spans)
    ends = rows.ends(problem, size, segments)
    columns = sum(
        -(-min((g + 1) * size, hi) // key_block)
        for lo, hi in spans
        for g in range(lo // size, -(-hi // size))
    )
    if isinstance(config, MlsysConfig):
        exact = rows.tails(problem, config)
    else:
        exact = rows.strided(problem, config, segments)
    pools = None
    if isinstance(config, SampleAttentionConfig) and isinstance(config.ranking, PooledQueries):
        pools = rows.pools(problem, config, config.ranking.rows, segments)
    return Geometry(
        size, segments, rows.windows(problem, config), rows.always(problem, config, ends),
        rows.limits(problem, config, ends), exact,
        pools, columns,
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
