"""PyTorch's own dense attention: the one it chooses, and on fewer queries than keys two, merged."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..problem import Sequences
from .base import Facts
from .flash import attention_with_lse, merge
from .gpu import aligned


class SdpaAttention:
    """`scaled_dot_product_attention` on any device; its causal mask is top-left."""

    name = "sdpa"

    def refusal(self, facts: Facts) -> str | None:
        """See `DenseProvider.refusal`."""
        if facts.lse:
            return "returns no log-sum-exp"
        if facts.layout not in ("row", "square"):
            return "accepted: one query, or as many as keys, in every batch row"
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, sequences: Sequences | None = None
    ) -> tuple[Tensor, None]:
        """See `DenseProvider.__call__`."""
        del sequences
        if q.is_cuda:  # rows of odd strides gave wrong results (torch 2.11, H100)
            q, k, v = (aligned(x) for x in (q, k, v))
        out = scaled_dot_product_attention(
            q, k, v, is_causal=q.shape[2] > 1, scale=scale, enable_gqa=q.shape[1] > k.shape[1]
        )
        return out, None


class MergedAttention:
    """The keys before the queries without a mask, those of the queries with one; any device."""

    name = "sdpa on the prefix and the causal square, merged"

    def refusal(self, facts: Facts) -> str | None:
        """See `DenseProvider.refusal`."""
        if facts.layout in ("packed", "several"):
            return "accepted: as many queries in every batch row, and as many keys"
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, sequences: Sequences | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `DenseProvider.__call__`."""
        del sequences
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        prefix = k.shape[2] - q.shape[2]
        out, lse = attention_with_lse(q, k[:, :, prefix:], v[:, :, prefix:], scale, causal=True)
        if prefix:
            more = attention_with_lse(q, k[:, :, :prefix], v[:, :, :prefix], scale)
            merge(out, lse, *more)
        return out, lse


def repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    """Keys or values `[B, Hkv, S, D]`, each head as often as query heads share it."""
    return x[:, :, None].expand(-1, -1, num_heads // x.shape[1], -1, -1).flatten(1, 2)
