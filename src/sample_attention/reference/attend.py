"""Dense softmax with explicit masks, in any dtype (the tests run it in fp64).

One sequence at a time: q `[H, Sq, D]`, k and v `[Hkv, Skv, D]`, masks bool `[H, Sq, Skv]`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def probabilities(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Dense causal softmax P = softmax(q k^T scale), bottom-right aligned: `[H, Sq, Skv]`."""
    return torch.softmax(_scores(q, k, scale), dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax renormalised over the kept pairs: out `[H, Sq, D]` and natural lse `[H, Sq]`.

    A row that keeps nothing gives zeros and an lse of -inf. Where v has another dtype than q and
    k, the softmax is rounded to it before it meets the values.
    """
    scores = _scores(q, k, scale).masked_fill(~mask, -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    kept = torch.exp(scores - lse[..., None]).masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return kept.to(v.dtype) @ per_head(v, q), lse


def retained_mass(q: Tensor, k: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Dense probability on the kept keys, per row: `[H, Sq]`; its minimum is the paper's CRA."""
    return (probabilities(q, k, scale) * mask).sum(-1)


def _scores(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    q_len, kv_len = q.shape[1], k.shape[1]
    scores = (q @ per_head(k, q).mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    j = torch.arange(kv_len, device=q.device)
    return scores.masked_fill(j > j[kv_len - q_len :, None], -math.inf)


def per_head(kv: Tensor, q: Tensor) -> Tensor:
    """Keys or values `[Hkv, Skv, D]` once for each query head of q: `[H, Skv, D]`."""
    return kv.repeat_interleave(q.shape[0] // kv.shape[0], 0)


def positions(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the queries `[Sq, 1]` and of the keys `[1, Skv]`, bottom-right aligned."""
    j = torch.arange(k.shape[1], device=q.device)
    return j[k.shape[1] - q.shape[1] :, None], j[None]


def sampled(p: Tensor, stride: int) -> Tensor:
    """Which of the rows at positions `[R, 1]` are sampled, one in every `stride`: bool `[R]`."""
    return (p % stride == stride // 2)[:, 0]
