"""Attention of layers with a sliding window or capped scores, computed exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem, keys_of
from .attention import blank
from .flash import attention_with_lse
from .sdpa import repeat_heads

LIMITED_ROWS = 256
"""Most query rows of `limited` at once."""

CAPPED_SCORES = 2**24
"""Most scores that `limited` holds at once when they are capped; bounds its memory."""


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
    out, lse = blank(q)
    for n, (b, q0, q_len, _, kv_len) in enumerate(problem.sequences.rows()):
        keys, values = (keys_of(x, problem.sequences, n)[None] for x in (k, v))
        offset = kv_len - q_len
        height = LIMITED_ROWS
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
            visible = slice(first, offset + hi)
            k_seen = repeat_heads(keys[:, :, visible], problem.num_heads)
            v_seen = repeat_heads(values[:, :, visible], problem.num_heads)
            if softcap is None:
                part, part_lse = attention_with_lse(rows, k_seen, v_seen, scale, mask=mask)
            else:
                part, part_lse = _capped(rows, k_seen, v_seen, scale, mask, softcap)
            out[b, :, at], lse[b, :, at] = part[0], part_lse[0]
    return out, lse


def _capped(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor, softcap: float
) -> tuple[Tensor, Tensor]:
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = q.to(exact) @ k.mT.to(exact)  # a product in halves would round the scores
    scores.mul_(scale / softcap).tanh_().mul_(softcap).masked_fill_(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    return (scores.sub_(lse[..., None]).exp_() @ v.to(exact)).to(v.dtype), lse
