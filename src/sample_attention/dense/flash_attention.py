"""FlashAttention 3 and 4: one interface, in packages of their own; tensors are `[B, S, H, D]`.

Splitting the keys of one row over several blocks stays off: how many blocks there would be depends
on the batch, and with it the rounding.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..problem import Sequences
from .base import Facts
from .gpu import HALVES, aligned, gpu_refusal, import_first, on_device_of

OPERATORS = {"fa3_fwd_interface": "fa3_fwd", "flash_attn_interface": "flash_attn_3"}
"""Interfaces of FlashAttention 3, and the library of torch that each registers its kernels in."""

ARGUMENTS = (
    "q", "k", "v", "k_new", "v_new", "q_v", "out", "cu_seqlens_q", "cu_seqlens_k",
    "cu_seqlens_k_new", "seqused_q", "seqused_k", "max_seqlen_q", "max_seqlen_k", "page_table",
    "kv_batch_idx", "leftpad_k", "rotary_cos", "rotary_sin", "seqlens_rotary", "q_descale",
    "k_descale", "v_descale", "softmax_scale", "is_causal", "window_size_left",
    "window_size_right", "attention_chunk", "softcap", "is_rotary_interleaved",
    "scheduler_metadata", "num_splits", "pack_gqa", "sm_margin",
)  # fmt: skip
"""Of the operator `fwd` of FlashAttention 3, as far as it is known here."""


class Entry(NamedTuple):
    """Where a package is entered: what takes a batch, and what takes packed sequences.

    Attributes:
        batched: of q, k, v `[B, S, H, D]`; returns out, lse and what else it likes.
        packed: of q, k, v `[T, H, D]` and their running totals; returns the same.
        options: what both are told beside the tensors and the scale.
    """

    batched: Callable[..., tuple[Tensor, ...]]
    packed: Callable[..., tuple[Tensor, ...]]
    options: Mapping[str, Any]


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

    def entry(self, module: ModuleType) -> Entry:
        """The functions that the package documents."""
        options = {"causal": True, self.lse_keyword: True}
        return Entry(module.flash_attn_func, module.flash_attn_varlen_func, options)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, sequences: Sequences | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `DenseProvider.__call__`."""
        entry = self.entry(cast("ModuleType", import_first(*self.modules)))
        q, k, v = (aligned(x).transpose(1, 2) for x in (q, k, v))
        with on_device_of(q):
            if sequences is None:
                out, lse, *_ = entry.batched(q, k, v, softmax_scale=scale, **entry.options)
                return out.transpose(1, 2), lse
            totals = cast("Tensor", sequences.totals)
            out, lse, *_ = entry.packed(
                q[0], k[0], v[0], cu_seqlens_q=totals[0], cu_seqlens_k=totals[1],
                max_seqlen_q=sequences.max_q_len, max_seqlen_k=sequences.max_kv_len,
                softmax_scale=scale, **entry.options,
            )  # fmt: skip
        last = cast("int", sequences.total_q_len)
        if last < out.shape[0]:  # tokens of no sequence
            out[last:] = 0
            lse[:, last:] = -torch.inf
        return out.transpose(0, 1)[None], lse[None]


class FlashAttention3(FlashAttention):
    """FlashAttention 3, for Hopper."""

    name = "fa3"
    modules = ("fa3_fwd_interface", "flash_attn_interface")
    majors = (9,)
    lse_keyword = "return_attn_probs"

    def entry(self, module: ModuleType) -> Entry:
        """The operator under the package's functions, or these where it is not the known one."""
        return _operator(module) or super().entry(module)

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


@functools.cache
def _operator(module: ModuleType) -> Entry | None:
    """What the functions of FlashAttention 3 end in, for a fifth of the host's time."""
    library: Any = getattr(torch.ops, OPERATORS[module.__name__])
    operator: Any = getattr(getattr(library, "fwd", None), "default", None)
    if operator is None or tuple(x.name for x in operator._schema.arguments) != ARGUMENTS:
        return None
    return Entry(operator, operator, {"is_causal": True, "num_splits": 1})
