"""Facts of tensors that kernels are compiled for."""

from __future__ import annotations

import math

from torch import Tensor

from ..problem import Problem

LOG2E = math.log2(math.e)
"""Kernels compute powers of two: scores are scaled by this."""


def needs_int64(problem: Problem, *tensors: Tensor) -> bool:
    """Whether a key of k or v lies 2^31 elements or more from the first key of its head."""
    s = problem.sequences
    if s.page_size:
        return any(x.shape[0] * x.stride(0) + x.stride(2) * s.page_size >= 2**31 for x in tensors)
    return any(s.max_kv_len * x.stride(2) >= 2**31 for x in tensors)


def padded_dim(head_dim: int) -> int:
    """Head dim of a tile: a power of two, and no less than tensor cores multiply at once."""
    return max(16, power_of_two(head_dim))


def power_of_two(least: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << max(0, least - 1).bit_length()


def page_table_stride(page_table: Tensor | None) -> int | None:
    """Elements from one sequence's pages to the next's; None without a page table."""
    return None if page_table is None else page_table.stride(0)
