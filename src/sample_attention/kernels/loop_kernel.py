"""Bounds of loops, in a form that Triton's interpreter takes with every release of numpy."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .device import interpreted

if interpreted():

    def bound(n: Any) -> Any:
        """`n` for `range`: Triton 3.6 makes it an array of one number, which numpy 2.4 refuses."""
        return n.handle.data.item() if isinstance(n, tl.tensor) else n

else:

    @triton.jit
    def bound(n):
        """`n` for `range`."""
        return n
