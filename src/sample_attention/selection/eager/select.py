"""Selection in PyTorch, in fp32 (fp64 for fp64 inputs): the heads of a group at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ...config import Config, MlsysConfig, PaperConfig, SampleAttentionConfig
from ...kernels.parallel import Task, run_all
from ...plan import HeldOut, StripePlan
from ...problem import Problem, keys_of
from ..lists import SegmentLists
from .column_mass import GroupRows, ScoreBuffer
from .published import CHUNK_ROWS, select_blocks, select_whole
from .segments import SCORES_AT_ONCE, at_once, scores_of_segment, select_segments


def select(q: Tensor, k: Tensor, problem: Problem, config: Config, scale: float) -> StripePlan:
    """Stages 1 and 2 for q `[B, H, Sq, D]` and k `[B, Hkv, Skv, D]`."""
    lists = SegmentLists(problem, config)
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    held_out = None
    if config.check.held_out_rows:
        rows = lists.held_out_rows()
        lse = q.new_zeros(*lists.dense.shape, rows.shape[-1], dtype=exact)
        held_out = HeldOut(rows, lse)
    run_all(_tasks(q, k, problem, scale, lists, held_out), problem.device)
    if held_out is None:
        return lists.plan()
    return lists.plan(HeldOut(held_out.rows.to(problem.device), held_out.lse))


def _tasks(
    q: Tensor, k: Tensor, problem: Problem, scale: float, lists: SegmentLists,
    held_out: HeldOut | None,
) -> Iterator[Task]:  # fmt: skip
    """One sequence and group of heads after the other; results do not depend on who runs them."""
    config = lists.config
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    buffer = ScoreBuffer(q.new_empty(0, dtype=exact))
    for n, (b, q0, q_len, _, kv_len) in enumerate(problem.sequences.rows()):
        for heads in _head_groups(problem, config, kv_len):
            queries = q[b, heads.start : heads.stop, q0 : q0 + q_len].to(exact)
            kv_head = heads.start // problem.group_size
            keys = keys_of(k[:, kv_head], problem.sequences, n).to(exact)
            rows = GroupRows(queries, keys, heads, kv_len - q_len, scale, buffer)
            yield from _select_group(rows, n, lists)
            if held_out is not None:
                lse = held_out.lse[n, heads.start : heads.stop]
                for g, held in enumerate(held_out.rows[n]):
                    yield partial(_fill_held_out, rows, held, lse[:, g])


def _head_groups(problem: Problem, config: Config, kv_len: int) -> Iterator[range]:
    """Heads that share keys, as many at a time as keep the scores of a segment in the caches."""
    if isinstance(config, SampleAttentionConfig):
        scores, most = scores_of_segment(config, config.segment, kv_len), at_once(config)
    else:
        scores, most = CHUNK_ROWS * kv_len, SCORES_AT_ONCE
    together = max(1, most // scores)
    for kv_head in range(problem.num_kv_heads):
        first, stop = kv_head * problem.group_size, (kv_head + 1) * problem.group_size
        for h in range(first, stop, together):
            yield range(h, min(h + together, stop))


def _select_group(rows: GroupRows, n: int, lists: SegmentLists) -> Iterator[Task]:
    # A sample can miss a NaN or an infinity; dense attention misses none.
    config = lists.config
    if config.dense or not bool((rows.q.sum() + rows.k.sum()).isfinite()):
        lists.dense[n, rows.heads.start : rows.heads.stop] = True
    elif isinstance(config, MlsysConfig):
        yield partial(select_blocks, rows, n, lists, config)
    elif isinstance(config, PaperConfig):
        yield partial(select_whole, rows, n, lists, config)
    elif isinstance(config, SampleAttentionConfig):
        yield from select_segments(rows, n, lists, config)


def _fill_held_out(rows: GroupRows, held_out: Tensor, lse: Tensor) -> None:
    """Dense log-sum-exp `[G, R]` of a segment's held-out rows; 0 where there is no row."""
    held = held_out[held_out >= 0].long()
    if len(held):
        lse[:, : len(held)] = rows.lse(held + rows.offset)
