"""Dense causal attention by the fastest provider at hand, which `explain` names."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem
from .eager.flash import attention_with_lse, merge


def provider(problem: Problem) -> str:
    """Which implementation `dense` runs for a problem."""
    return "sdpa" if _is_square(problem) else "sdpa on the prefix and the causal square, merged"


def dense(q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
    """Dense bottom-right causal attention of q `[B, H, Sq, D]`; rows of padding give zeros."""
    if _is_square(problem):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=problem.group_size > 1
        )
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for b, q0, q_len, k0, kv_len in problem.sequences.rows():
        at, split = slice(q0, q0 + q_len), k0 + kv_len - q_len
        rows = q[b : b + 1, :, at]
        prefix, square = slice(k0, split), slice(split, k0 + kv_len)
        square_out, lse = attention_with_lse(
            rows, *_heads(k, v, b, square, problem), scale, causal=True
        )
        if split > k0:
            more, more_lse = attention_with_lse(rows, *_heads(k, v, b, prefix, problem), scale)
            merge(square_out, lse, more, more_lse)
        out[b, :, at] = square_out[0]
    return out


def _heads(k: Tensor, v: Tensor, b: int, at: slice, problem: Problem) -> tuple[Tensor, Tensor]:
    group = problem.group_size
    return tuple(  # pyright: ignore[reportReturnType]
        x[b : b + 1, :, None, at].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v)
    )


def _is_square(problem: Problem) -> bool:
    """Whether every batch row is one sequence with as many queries as keys."""
    s = problem.sequences
    uniform = not s.packed and bool((s.table[:, 2:] == s.table.new_tensor(
        [s.max_q_len, 0, s.max_kv_len])).all())  # fmt: skip
    return uniform and s.max_q_len == s.max_kv_len
