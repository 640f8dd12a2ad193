"""The log-sum-exp of a row, tile by tile: a running maximum and a sum relative to it."""

from __future__ import annotations

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1.0e30)
"""Running maximum before the first key: finite, so that empty rows never meet inf - inf."""


@triton.jit
def add_scores(m, total, s, scale):
    """Maximum and sum `[rows]` with the scores `[rows, keys]` of one more tile; m is in log2."""
    # [rows]
    m_new = tl.maximum(m, tl.max(s, 1) * scale)
    total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s * scale - m_new[:, None]), 1)
    return m_new, total
