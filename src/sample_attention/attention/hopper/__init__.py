"""Attention on sm_90 (H100, H200): one warp group gathers and two attend."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from ...kernels.device import interpreted
from ...plan import PlanForm, StripePlan
from ...problem import Problem

HEAD_DIMS = (64, 128)
DTYPES = (torch.bfloat16, torch.float16)
CAPABILITY = (9, 0)
GLUON = "triton.experimental.gluon.language.nvidia.hopper"

BLOCK_M = 128
"""Rows of a tile: they see the same list, and their windows have the same left edge."""


class HopperAttention:
    """Attends by gather with warps of their own for copies and for products."""

    name = "hopper"

    def refusal(self, problem: Problem, form: PlanForm | None = None) -> str | None:
        """See `AttentionEngine.refusal`."""
        if problem.head_dim not in HEAD_DIMS:
            return f"head dim {problem.head_dim}; accepted: {', '.join(map(str, HEAD_DIMS))}"
        if problem.dtype not in DTYPES:
            return f"{problem.dtype}; accepted: {', '.join(map(str, DTYPES))}"
        refused = _device_refusal(problem.device) or (form and _form_refusal(form))
        if refused is None and interpreted():
            return "TRITON_INTERPRET is set, and Triton's interpreter does not run Gluon; unset it"
        return refused

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionEngine.attend`."""
        from .attend import attend

        return attend(q, k, v, problem, plan, scale)


@functools.cache
def _device_refusal(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec(GLUON) is None:
        return "no triton with Gluon is installed; accepted: triton 3.6 and newer"
    if device.type != "cuda":
        return f"device {device}; accepted: an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability != CAPABILITY:
        return f"sm_{capability[0]}{capability[1]}; accepted: sm_90 (H100, H200)"
    return None


def _form_refusal(form: PlanForm) -> str | None:
    """Why plans of this form are not attended to."""
    if form.segment % BLOCK_M or form.window_alignment != BLOCK_M:
        return f"rows of a plan do not share their keys {BLOCK_M} by {BLOCK_M}"
    if form.key_block != 1:
        return f"key_block {form.key_block}; accepted: 1"
    if form.dense_tail:
        return f"a plan with dense_tail {form.dense_tail}; accepted: dense segments instead"
    return None


engine = HopperAttention()
