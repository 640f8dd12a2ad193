"""Dense attention that also returns its log-sum-exp, and the merge of two such results."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Softmax attention of q `[..., R, D]` over k, v `[..., K, D]`.

    On a CPU this is torch's fused flash kernel; elsewhere plain PyTorch, row by key.

    Args:
        q: `[1, H, R, D]`.
        k: `[1, H, K, D]`.
        v: `[1, H, K, D]`.
        scale: multiplies q.k.
        causal: R = K and row i sees keys 0..i.
        mask: bool `[R, K]`, True where a pair is computed.

    Returns:
        out like q, and natural lse `[1, H, R]` in fp32 (fp64 for fp64 inputs); zeros and -inf for
        rows whose mask is all False.
    """
    if mask is None:
        return _fused(q, k, v, scale, causal, None)
    empty = ~mask.any(-1)
    out, lse = _fused(q, k, v, scale, causal, mask | empty[:, None])
    return out.masked_fill_(empty[:, None], 0.0), lse.masked_fill_(empty, -torch.inf)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if q.device.type == "cpu":
        bias = None
        if mask is not None:
            bias = q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
    exact = _accumulator(q.dtype)  # a product in halves would round the scores
    scores = (q.to(exact) @ k.mT.to(exact)) * scale
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    return (torch.exp(scores - lse[..., None]) @ v.to(exact)).to(v.dtype), lse


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Fold a second softmax over other keys into `out` and `lse`, in place.

    out = (out e^lse + other e^other_lse) / (e^lse + e^other_lse); an lse of -inf adds nothing.
    """
    total = torch.logaddexp(lse, other_lse)
    shift = total.masked_fill(total == -torch.inf, 0.0)
    mine = torch.exp(lse - shift)[..., None].to(out.dtype)
    theirs = torch.exp(other_lse - shift)[..., None].to(out.dtype)
    out.mul_(mine).addcmul_(other, theirs)
    lse.copy_(total)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
