"""Two kernels that come with torch, called by name: cuDNN, and FlashAttention 2.

`scaled_dot_product_attention` would choose for itself, and can be told otherwise only by switches
of the whole process, which another thread may be using.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Sequences
from .base import Facts
from .gpu import aligned, gpu_refusal

CUDNN_VERSION = 91501
"""The first that is right at every length: those before are not where 128 does not divide it."""


class CudnnAttention:
    """cuDNN; its causal mask is top-left, so only as many queries as keys."""

    name = "cudnn"

    def refusal(self, facts: Facts) -> str | None:
        """See `DenseProvider.refusal`."""
        reason = gpu_refusal(facts, (9, 10), max_head_dim=128)
        if reason is not None:
            return reason
        if facts.layout != "square":
            return "accepted: as many queries as keys, in every batch row"
        version = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        if version is None or version < CUDNN_VERSION:
            return f"cuDNN {version}; accepted: {CUDNN_VERSION} or newer"
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, sequences: Sequences | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `DenseProvider.__call__`."""
        del sequences
        q, k, v = (aligned(x) for x in (q, k, v))
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, compute_log_sumexp=True, is_causal=True, scale=scale
        )
        return out, lse.view(q.shape[:3])


class FlashAttention2:
    """torch's FlashAttention 2; its causal mask is bottom-right."""

    name = "fa2"

    def refusal(self, facts: Facts) -> str | None:
        """See `DenseProvider.refusal`."""
        reason = gpu_refusal(facts, (8, 9, 10, 12))
        if reason is not None:
            return reason
        if facts.layout not in ("square", "chunk"):
            return "accepted: as many queries in every batch row, and as many keys"
        if not torch.backends.cuda.is_flash_attention_available():
            return "this build of torch leaves it out"
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, sequences: Sequences | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `DenseProvider.__call__`."""
        del sequences
        q, k, v = (aligned(x) for x in (q, k, v))
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            q, k, v, is_causal=True, scale=scale
        )
        return out, lse
