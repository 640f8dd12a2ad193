"""Triton kernels for NVIDIA GPUs from sm80 up; elsewhere in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from ...config import SampleAttentionConfig
from ...plan import StripePlan
from ...problem import Problem
from ..base import Subject

MAX_HEAD_DIM = 256
MIN_CAPABILITY = (8, 0)

DTYPES = (torch.float16, torch.bfloat16)
DTYPES_INTERPRETED = (torch.float16, torch.float32)
"""Triton's interpreter (3.6 to 3.9) keeps bf16 as uint16, and multiplies those."""

MOST_PROBES = 4096
"""Largest `probes`: one program holds what they found."""

BLOCK_SIZES = (16, 32, 64, 128)
"""Accepted `key_block` of a preset that selects blocks, and rows of a plan's small segments."""


class TritonBackend:
    """Selects and attends on the device; the host never waits."""

    name = "triton"

    def refusal(self, problem: Problem, subject: Subject = None) -> str | None:
        """See `Backend.refusal`."""
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        refused = None
        if isinstance(subject, SampleAttentionConfig):
            refused = _config_refusal(subject)
        elif subject is not None:
            refused = _plan_refusal(subject.segment)
        if refused is not None:
            return refused
        if problem.head_dim > MAX_HEAD_DIM:
            return f"head dim {problem.head_dim}; accepted: up to {MAX_HEAD_DIM}"
        dtypes, where = DTYPES, ""
        if slowly := interpreted():
            dtypes, where = DTYPES_INTERPRETED, " in Triton's interpreter (TRITON_INTERPRET is set)"
        if problem.dtype not in dtypes:
            return f"{problem.dtype}{where}; accepted: {', '.join(str(x) for x in dtypes)}"
        return None if slowly else _device_refusal(problem.device)

    def select(
        self, q: Tensor, k: Tensor, problem: Problem, config: SampleAttentionConfig, scale: float
    ) -> StripePlan:
        """See `Backend.select`."""
        from .select import select

        return select(q, k, problem, config, scale)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, plan: StripePlan, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.attend`."""
        from .attend import attend

        return attend(q, k, v, problem, plan, scale)


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, read as `triton.knobs` reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _plan_refusal(rows: int) -> str | None:
    """Selecting takes segments of any size; attending, those that are made of tiles."""
    if rows in BLOCK_SIZES or rows % BLOCK_SIZES[-1] == 0:
        return None
    small = ", ".join(map(str, BLOCK_SIZES[:-1]))
    return f"segments of {rows} rows; accepted: {small} and multiples of {BLOCK_SIZES[-1]}"


def _config_refusal(config: SampleAttentionConfig) -> str | None:
    if config.chunk_tails and config.key_block not in BLOCK_SIZES:
        return f"key_block {config.key_block}; accepted: {', '.join(map(str, BLOCK_SIZES))}"
    if config.spread and config.probes is None:
        return f"spread without probes; accepted: probes of 16 to {MOST_PROBES}"
    if config.spread and (config.probes or 0) > MOST_PROBES:
        return f"{config.probes} probes; accepted: up to {MOST_PROBES}"
    return None


def _device_refusal(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"device {device}; accepted: an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"sm_{capability[0]}{capability[1]}; accepted: sm_80 and newer"
    return None


backend = TritonBackend()
