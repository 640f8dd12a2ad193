"""Attention with one warp group that gathers and two that attend, for GPUs of sm_90 (H100, H200).

Selecting is that of the `triton` backend.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan import StripePlan
from ...problem import Problem
from ..base import Subject
from ..triton import backend as selecting
from ..triton import interpreted

HEAD_DIMS = (64, 128)
DTYPES = (torch.bfloat16, torch.float16)
CAPABILITY = (9, 0)
GLUON = "triton.experimental.gluon.language.nvidia.hopper"

BLOCK_M = 128
"""Rows of a tile: they see the same list, and their windows have the same left edge."""


class HopperBackend:
    """Attends by gather with warps of their own for copies and for products."""

    name = "hopper"

    def refusal(self, problem: Problem, subject: Subject = None) -> str | None:
        """See `Backend.refusal`."""
        if problem.head_dim not in HEAD_DIMS:
            return f"head dim {problem.head_dim}; accepted: {', '.join(map(str, HEAD_DIMS))}"
        if problem.dtype not in DTYPES:
            return f"{problem.dtype}; accepted: {', '.join(map(str, DTYPES))}"
        refused = _device_refusal(problem.device) or (subject and form_refusal(subject))
        if refused is None and interpreted():
            return "TRITON_INTERPRET is set, and Triton's interpreter does not run Gluon; unset it"
        if refused is None and isinstance(subject, SampleAttentionConfig):
            return selecting.refusal(problem, subject)
        return refused

    def select(
        self, q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, scale: float
    ) -> StripePlan:
        """See `Backend.select`."""
        return selecting.select(q, k, problem, config, scale)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.attend`."""
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


def form_refusal(subject: SampleAttentionConfig | StripePlan) -> str | None:
    """Why plans of this form are not attended to."""
    if subject.segment is None or subject.segment % BLOCK_M or subject.window_alignment != BLOCK_M:
        return f"rows of a plan do not share their keys {BLOCK_M} by {BLOCK_M}"
    if subject.key_block != 1:
        return f"key_block {subject.key_block}; accepted: 1"
    if isinstance(subject, StripePlan) and subject.dense_tail:
        return f"a plan with dense_tail {subject.dense_tail}; accepted: dense segments instead"
    return None


backend = HopperBackend()
