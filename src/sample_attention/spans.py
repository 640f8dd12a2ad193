"""Long calls in spans of rows: the lists of all segments never exist at once.

Segments lie at absolute positions, so a span of whole segments selects and attends as it would
within the whole call. The queries before it only make its offset larger.
"""

from __future__ import annotations

import itertools

from .config import SampleAttentionConfig
from .problem import Problem

COLUMNS_AT_ONCE = 2**28
"""Columns of all segments and heads that are selected from at once: bounds lists and scratch."""


def spans(problem: Problem, config: SampleAttentionConfig) -> list[range]:
    """Query rows of the call that are computed together, in order; one span where all fit.

    Only batches without padding are cut: other sequences end at different rows. So are only
    rules that know no end of the call: no dense tail, no window that is a share of the keys.
    """
    s, size = problem.sequences, config.segment
    if size is None or config.dense_tail or config.window_ratio is not None or not s.uniform:
        return [range(s.max_q_len)]
    offset, heads = s.max_kv_len - s.max_q_len, len(s.table) * problem.num_heads
    cuts = [offset]
    while cuts[-1] < s.max_kv_len:
        segments, left = 1, -(-s.max_kv_len // size) - cuts[-1] // size
        while (
            segments < left
            and heads * (segments + 1) * (cuts[-1] + segments * size) <= COLUMNS_AT_ONCE
        ):
            segments += 1
        cuts.append(min((cuts[-1] // size + segments) * size, s.max_kv_len))
    return [range(lo - offset, hi - offset) for lo, hi in itertools.pairwise(cuts)]
