"""Selection in PyTorch: one head of one sequence at a time, in fp32 (fp64 for fp64 inputs)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan import Probe, StripePlan
from ...problem import Problem
from ...selection.lists import SegmentLists
from .mass import row_lse
from .segments import HeadRows, select_segments
from .whole import select_blocks, select_whole


def select(
    q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, scale: float
) -> StripePlan:
    """Stages 1 and 2 for q `[B, H, Sq, D]` and k `[B, Hkv, Skv, D]`."""
    lists = SegmentLists(problem, config)
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    probe_rows = lists.probe_rows() if config.held_out else None
    probe_lse: list[Tensor] = []
    for n, (b, q0, q_len, k0, kv_len) in enumerate(problem.sequences.rows()):
        for kv_head in range(problem.num_kv_heads):
            keys = k[b, kv_head, k0 : k0 + kv_len].to(exact)
            for h in range(kv_head * problem.group_size, (kv_head + 1) * problem.group_size):
                queries = q[b, h, q0 : q0 + q_len].to(exact)
                head = HeadRows(queries, keys, kv_len - q_len, scale)
                _select_head(head, n, h, lists)
                if probe_rows is not None:
                    probe_lse.append(_probe(head, probe_rows[n]))
    if probe_rows is None:
        return lists.plan()
    lse = torch.stack(probe_lse).view(len(probe_rows), problem.num_heads, *probe_rows.shape[1:])
    return lists.plan(Probe(probe_rows.to(problem.device), lse))


def _select_head(head: HeadRows, n: int, h: int, lists: SegmentLists) -> None:
    if lists.config.dense:
        lists.dense[n, h] = True
    elif lists.config.chunk_tails is not None:
        select_blocks(head, n, h, lists)
    elif lists.config.segment is None:
        select_whole(head, n, h, lists)
    else:
        select_segments(head, n, h, lists)


def _probe(head: HeadRows, rows: Tensor) -> Tensor:
    """Dense log-sum-exp of the held-out rows of each segment: `[G, R]`, 0 where there is no row."""
    lse = torch.zeros(rows.shape, dtype=head.q.dtype, device=head.q.device)
    for g, segment_rows in enumerate(rows):
        held = segment_rows[segment_rows >= 0].long()
        if len(held):
            positions = held + head.offset
            keys = head.k[: int(positions.max()) + 1]
            lse[g, : len(held)] = row_lse(head.q[held], keys, positions, head.scale)
    return lse
