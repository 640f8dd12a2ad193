"""Selection in PyTorch, in fp32 (fp64 for fp64 inputs): independent parts of one head each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan import Probe, StripePlan
from ...problem import Problem
from ...selection.lists import SegmentLists
from .mass import row_lse
from .parallel import Task, run_all
from .segments import HeadRows, segment_tasks
from .whole import select_blocks, select_whole


def select(
    q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, scale: float
) -> StripePlan:
    """Stages 1 and 2 for q `[B, H, Sq, D]` and k `[B, Hkv, Skv, D]`."""
    lists = SegmentLists(problem, config)
    rows = lists.probe_rows() if config.held_out else None
    probe = None
    if rows is not None:
        lse = q.new_zeros(*lists.dense.shape, config.held_out, dtype=_exact(q.dtype))
        probe = Probe(rows.to(problem.device), lse)
    run_all(_tasks(q, k, lists, probe, scale), problem.device)
    return lists.plan(probe)


def _tasks(
    q: Tensor, k: Tensor, lists: SegmentLists, probe: Probe | None, scale: float
) -> Iterator[Task]:
    problem, exact = lists.problem, _exact(q.dtype)
    for n, (b, q0, q_len, k0, kv_len) in enumerate(problem.sequences.rows()):
        for kv_head in range(problem.num_kv_heads):
            keys = k[b, kv_head, k0 : k0 + kv_len].to(exact)
            for h in range(kv_head * problem.group_size, (kv_head + 1) * problem.group_size):
                queries = q[b, h, q0 : q0 + q_len].to(exact)
                head = HeadRows(queries, keys, kv_len - q_len, scale)
                yield from _head_tasks(head, n, h, lists)
                if probe is not None:
                    yield partial(_fill_probe, head, probe.rows[n], probe.lse[n, h])


def _head_tasks(head: HeadRows, n: int, h: int, lists: SegmentLists) -> Iterator[Task]:
    if lists.config.dense:
        lists.dense[n, h] = True
    elif lists.config.chunk_tails is not None:
        yield partial(select_blocks, head, n, h, lists)
    elif lists.config.segment is None:
        yield partial(select_whole, head, n, h, lists)
    else:
        yield from segment_tasks(head, n, h, lists)


def _fill_probe(head: HeadRows, rows: Tensor, lse: Tensor) -> None:
    """Dense log-sum-exp of the held-out rows `[G, R]` of each segment; 0 where there is no row."""
    for g, segment_rows in enumerate(rows.cpu()):
        held = segment_rows[segment_rows >= 0].long()
        if len(held):
            positions = held + head.offset
            keys = head.k[: int(positions.max()) + 1]
            lse[g, : len(held)] = row_lse(head.q[held], keys, positions, head.scale)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
