"""Dense causal attention by the fastest provider at hand, which `explain` names.

`dense_with_lse` and `limited` serve layers that fused attention alone does not compute: sinks need
the log-sum-exp, and windows and capped scores change which scores there are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..problem import Problem, keys_of
from .eager.flash import attention_with_lse, merge

TILE_ROWS = 256
"""Most query rows of `limited` at once."""

CAPPED_SCORES = 2**24
"""Most scores that `limited` holds at once when they are capped; bounds its memory."""


def provider(problem: Problem) -> str:
    """Which implementation `dense` runs for a problem."""
    s = problem.sequences
    if s.max_q_len == 1 or (s.uniform and s.max_q_len == s.max_kv_len):
        return "sdpa"
    return "sdpa on the prefix and the causal square, merged"


def dense(q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
    """Dense bottom-right causal attention of q `[B, H, Sq, D]`; rows of padding give zeros."""
    s, grouped = problem.sequences, problem.num_heads > problem.num_kv_heads
    if s.uniform and s.max_q_len in (1, s.max_kv_len):
        return scaled_dot_product_attention(
            q, k, v, is_causal=s.max_q_len > 1, scale=scale, enable_gqa=grouped
        )
    if s.max_q_len > 1:
        return dense_with_lse(q, k, v, problem, scale)[0]
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for n, (b, q0, _, _, _) in enumerate(s.rows()):  # decoding: every key is visible
        keys, values = (keys_of(x, s, n)[None] for x in (k, v))
        row = q[b : b + 1, :, q0 : q0 + 1]
        out[b, :, q0 : q0 + 1] = scaled_dot_product_attention(
            row, keys, values, scale=scale, enable_gqa=grouped
        )[0]
    return out


def dense_with_lse(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float
) -> tuple[Tensor, Tensor]:
    """`dense`, and the natural lse `[B, H, Sq]` over the visible keys (-inf for padding)."""
    out, lse = _empty(q)
    for n, (b, q0, q_len, _, kv_len) in enumerate(problem.sequences.rows()):
        at, split = slice(q0, q0 + q_len), kv_len - q_len
        rows = q[b : b + 1, :, at]
        keys, values = (keys_of(x, problem.sequences, n) for x in (k, v))
        prefix, square = slice(0, split), slice(split, kv_len)
        part, part_lse = attention_with_lse(
            rows, *_heads(keys, values, square, problem), scale, causal=True
        )
        if split:
            more, more_lse = attention_with_lse(rows, *_heads(keys, values, prefix, problem), scale)
            merge(part, part_lse, more, more_lse)
        out[b, :, at], lse[b, :, at] = part[0], part_lse[0]
    return out, lse


def limited(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float, *,
    window: int | None = None, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Causal attention with a sliding window, capped scores or both; memory linear in the keys.

    Args:
        q: `[B, H, Sq, D]`.
        k: `[B, Hkv, Skv, D]`.
        v: like k.
        problem: describes the tensors.
        scale: multiplies q.k.
        window: keys that a row sees, itself included: `p - window < j <= p`; None: all.
        softcap: scores become `softcap * tanh(score / softcap)`; None: as they are.

    Returns:
        out and lse as `dense_with_lse`.
    """
    out, lse = _empty(q)
    for n, (b, q0, q_len, _, kv_len) in enumerate(problem.sequences.rows()):
        keys, values = (keys_of(x, problem.sequences, n) for x in (k, v))
        offset = kv_len - q_len
        height = TILE_ROWS
        if softcap is not None:
            height = max(1, min(height, CAPPED_SCORES // (problem.num_heads * kv_len)))
        for lo in range(0, q_len, height):
            hi = min(q_len, lo + height)
            first = 0 if window is None else max(0, offset + lo - window + 1)
            p = torch.arange(offset + lo, offset + hi, device=q.device)[:, None]
            j = torch.arange(first, offset + hi, device=q.device)
            mask = j <= p if window is None else (j <= p) & (j > p - window)
            at = slice(q0 + lo, q0 + hi)
            rows = q[b : b + 1, :, at]
            seen = _heads(keys, values, slice(first, offset + hi), problem)
            if softcap is None:
                part, part_lse = attention_with_lse(rows, *seen, scale, mask=mask)
            else:
                part, part_lse = _capped(rows, *seen, scale, mask, softcap)
            out[b, :, at], lse[b, :, at] = part[0], part_lse[0]
    return out, lse


def _capped(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor, softcap: float
) -> tuple[Tensor, Tensor]:
    scores = (q @ k.mT).to(_accumulator(q.dtype)).mul_(scale / softcap).tanh_().mul_(softcap)
    scores.masked_fill_(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    return scores.sub_(lse[..., None]).exp_().to(v.dtype) @ v, lse


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros for out and -inf for lse: what rows of padding keep."""
    lse = torch.full(q.shape[:3], -torch.inf, dtype=_accumulator(q.dtype), device=q.device)
    return torch.zeros(q.shape, dtype=q.dtype, device=q.device), lse


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _heads(k: Tensor, v: Tensor, at: slice, problem: Problem) -> tuple[Tensor, Tensor]:
    """Keys and values of one sequence for every query head: `[1, H, K, D]`."""
    group = problem.group_size
    return tuple(  # pyright: ignore[reportReturnType]
        x[None, :, None, at].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v)
    )
