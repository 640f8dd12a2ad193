"""What the fused kernels for NVIDIA GPUs have in common: limits, alignment, optional packages."""

from __future__ import annotations

import contextlib
import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from .base import Facts

HALVES = (torch.bfloat16, torch.float16)
ALIGNMENT = 16
"""Bytes that a kernel reads at once, a power of two: addresses and strides must be multiples."""

_HERE = contextlib.nullcontext()


def gpu_refusal(facts: Facts, majors: tuple[int, ...], max_head_dim: int = 256) -> str | None:
    """Why a fused kernel for these major compute capabilities cannot take a call."""
    if facts.device.type != "cuda" or torch.version.hip is not None:
        return f"device {facts.device}; accepted: an NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(facts.device)
    if major not in majors:
        return f"sm_{major}{minor}; accepted: {', '.join(f'sm_{x}x' for x in majors)}"
    if facts.dtype not in HALVES:
        return f"{facts.dtype}; accepted: {', '.join(str(x) for x in HALVES)}"
    if facts.head_dim % 8 or facts.head_dim > max_head_dim:
        return f"head dim {facts.head_dim}; accepted: multiples of 8 up to {max_head_dim}"
    return "one query: decoding is left to sdpa" if facts.layout == "row" else None


def aligned(x: Tensor) -> Tensor:
    """The tensor itself, or a copy where a kernel could not read it 16 bytes at a time."""
    batch, heads, rows, _ = x.stride()
    strides = (batch | heads | rows) * x.element_size()  # a multiple where each of them is one
    if not (x.data_ptr() % ALIGNMENT or strides % ALIGNMENT):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the GPU of a tensor the current one, where it is another."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device_of(x)


@functools.cache
def import_first(*names: str) -> ModuleType | str:
    """The first of the modules that imports, or in a few words why none does."""
    broken: list[str] = []
    for name in names:
        try:
            return importlib.import_module(name)
        except Exception as error:  # a build for another torch or GPU fails in ways of its own
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is None or not f"{name}.".startswith(f"{missing}."):
                broken.append(f"{name} does not import: {str(error).partition(chr(10))[0]}")
    return "; ".join(broken) or f"{' or '.join(names)} is not installed"
