"""Bounds of loops, in a form that Triton's interpreter takes with every release of numpy."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def bound(n):
    """`n` for `range`: Triton 3.6 interprets scalars as arrays of one, which numpy 2.4 refuses."""
    if INTERPRETED:
        n = tl.max(n + tl.zeros([1], tl.int32), 0)
    return n
