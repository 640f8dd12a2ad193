"""What Triton's kernels run on: NVIDIA GPUs from sm_80 up; elsewhere Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os

import torch

from ..problem import Problem

MAX_HEAD_DIM = 256
MIN_CAPABILITY = (8, 0)

DTYPES = (torch.float16, torch.bfloat16)
DTYPES_INTERPRETED = (torch.float16, torch.float32)
"""Triton's interpreter (3.6 to 3.9) keeps bf16 as uint16, and multiplies those."""

TILE_SIZES = (16, 32, 64, 128)
"""Rows or keys that a tile of a kernel may have."""


def triton_refusal(problem: Problem) -> str | None:
    """Why Triton's kernels do not take a problem, whatever they are to do; None: they take it."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if problem.head_dim > MAX_HEAD_DIM:
        return f"head dim {problem.head_dim}; accepted: up to {MAX_HEAD_DIM}"
    dtypes, where = DTYPES, ""
    if slowly := interpreted():
        dtypes, where = DTYPES_INTERPRETED, " in Triton's interpreter (TRITON_INTERPRET is set)"
    if problem.dtype not in dtypes:
        return f"{problem.dtype}{where}; accepted: {', '.join(str(x) for x in dtypes)}"
    return None if slowly else _device_refusal(problem.device)


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, read as `triton.knobs` reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _device_refusal(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"device {device}; accepted: an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"sm_{capability[0]}{capability[1]}; accepted: sm_80 and newer"
    return None
