"""Long calls in spans of rows: the lists of all segments never exist at once.

Segments lie at absolute positions, so a span of whole segments selects and attends as it would
within the whole call. The queries before it only make its offset larger.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from ..config import SampleAttentionConfig
from ..problem import Problem
from ..selection.rule import FixedRule

COLUMNS_AT_ONCE = 2**28
"""Columns of all segments and heads that are selected from at once: bounds lists and scratch."""

COLUMNS_PER_BYTE = 1 / 16
"""The same for large problems, per byte of q, k, v and the output; a column takes about 4 bytes."""


def row_spans(problem: Problem, rule: FixedRule) -> list[range]:
    """Query rows of the call that are computed together, in order; one span where all fit.

    Only batches without padding are cut, since other sequences end at different rows, and only for
    rules with segments. A selector may look at anything, so it sees the whole call.
    """
    s, size = problem.sequences, _segment(rule)
    if size is None or not s.uniform:
        return [range(s.max_q_len)]
    offset, heads = s.max_kv_len - s.max_q_len, len(s.table) * problem.num_heads
    tokens = heads * s.max_q_len + len(s.table) * problem.num_kv_heads * s.max_kv_len
    size_in_bytes = 2 * tokens * problem.head_dim * problem.dtype.itemsize
    most = max(COLUMNS_AT_ONCE, int(COLUMNS_PER_BYTE * size_in_bytes))
    cuts = [offset]
    while cuts[-1] < s.max_kv_len:
        segments, left = 1, -(-s.max_kv_len // size) - cuts[-1] // size
        while segments < left and heads * (segments + 1) * (cuts[-1] + segments * size) <= most:
            segments += 1
        cuts.append(min((cuts[-1] // size + segments) * size, s.max_kv_len))
    return [range(lo - offset, hi - offset) for lo, hi in itertools.pairwise(cuts)]


def _segment(rule: FixedRule) -> int | None:
    """Rows that are selected for on their own, whatever follows them; None: all of the call."""
    return rule.segment if isinstance(rule, SampleAttentionConfig) else None


def rule_of_span(rule: FixedRule, rows: range, q_len: int) -> FixedRule:
    """The rule for a span of the `q_len` rows of a call: with what of the dense tail lies in it."""
    if not isinstance(rule, SampleAttentionConfig):
        return rule
    return replace(rule, dense_tail=max(0, rule.dense_tail - (q_len - rows.stop)))
