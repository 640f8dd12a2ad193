"""FlashAttention 3 and 4: one interface, in packages of their own; tensors are `[B, S, H, D]`.

Splitting the keys of one row over several blocks stays off (the default of both): how many blocks
there would be depends on the batch, and with it the rounding.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...problem import Sequences
from .base import Facts
from .gpu import HALVES, aligned, gpu_refusal, import_first


class FlashAttention:
    """Sequences of any lengths, batched or packed, in one launch; returns the lse."""

    name: str
    modules: tuple[str, ...]
    majors: tuple[int, ...]
    lse_keyword: str

    def refusal(self, facts: Facts) -> str | None:
        """See `DenseProvider.refusal`."""
        reason = gpu_refusal(facts, self.majors)
        if reason is not None:
            return reason
        if facts.layout == "several":
            return "sequences with gaps between them; accepted: batched, or packed without gaps"
        module = import_first(*self.modules)
        if isinstance(module, str):
            return module
        if self.lse_keyword not in inspect.signature(module.flash_attn_func).parameters:
            return f"{module.__name__} is too old: it has no {self.lse_keyword}"
        return self.build_refusal(module, facts)

    def build_refusal(self, module: ModuleType, facts: Facts) -> str | None:
        """Why this build of the package cannot take a call that others can."""
        raise NotImplementedError

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, sequences: Sequences | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `DenseProvider.__call__`."""
        module: Any = import_first(*self.modules)
        options = {"softmax_scale": scale, "causal": True, self.lse_keyword: True}
        q, k, v = (aligned(x).transpose(1, 2) for x in (q, k, v))
        with torch.cuda.device_of(q):
            if sequences is None:
                out, lse = module.flash_attn_func(q, k, v, **options)
                return out.transpose(1, 2), lse
            out, lse = module.flash_attn_varlen_func(
                q[0], k[0], v[0],
                cu_seqlens_q=_totals(sequences, 1), cu_seqlens_k=_totals(sequences, 3),
                max_seqlen_q=sequences.max_q_len, max_seqlen_k=sequences.max_kv_len, **options,
            )  # fmt: skip
        out[sequences.total_q_len :] = 0  # tokens of no sequence
        lse[:, sequences.total_q_len :] = -torch.inf
        return out.transpose(0, 1)[None], lse[None]


class FlashAttention3(FlashAttention):
    """FlashAttention 3, for Hopper."""

    name = "fa3"
    modules = ("fa3_fwd_interface", "flash_attn_interface")
    majors = (9,)
    lse_keyword = "return_attn_probs"

    def build_refusal(self, module: ModuleType, facts: Facts) -> str | None:
        """Kernels that the build leaves out are listed in the module beside the interface."""
        listed = import_first(module.__name__.replace("_interface", "_config"))
        flags: dict[str, bool] = {}
        if not isinstance(listed, str):
            flags = listed.CONFIG["build_flags"]
        left_out = {name.removeprefix("FLASHATTENTION_DISABLE_") for name in flags if flags[name]}
        dims = [d for d in (64, 96, 128, 192, 256) if f"HDIM{d}" not in left_out]
        for missing, wanted in (
            ("FP16", facts.dtype == HALVES[1]),
            ("VARLEN", facts.layout == "packed"),
        ):
            if missing in left_out and wanted:
                return f"this build of {module.__name__} leaves out {missing}"
        if facts.head_dim > max(dims):
            return f"this build of {module.__name__} ends at head dim {max(dims)}"
        return None


class FlashAttention4(FlashAttention):
    """FlashAttention 4 (`flash-attn-4`), compiled on first use for Hopper and Blackwell."""

    name = "fa4"
    modules = ("flash_attn.cute",)
    majors = (9, 10)
    lse_keyword = "return_lse"

    def build_refusal(self, module: ModuleType, facts: Facts) -> str | None:
        """Blackwell has kernels up to head dim 128, and for 256."""
        del module
        major, _ = torch.cuda.get_device_capability(facts.device)
        if major == 9 or facts.head_dim <= 128 or facts.head_dim == 256:
            return None
        return f"head dim {facts.head_dim}; accepted on sm_{major}x: up to 128, and 256"


def _totals(sequences: Sequences, start: int) -> Tensor:
    """Running totals int32 `[N + 1]`: where each packed sequence starts, and the last ends."""
    starts, lengths = sequences.table[:, start], sequences.table[:, start + 1]
    return torch.cat([starts, starts[-1:] + lengths[-1:]])
