"""What is checked of q, k and v: shapes, strides, dtypes and devices, never values."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import InvalidInput

Form: TypeAlias = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]
"""(shape, strides, dtype, device): all of a tensor that is checked, so that once is enough."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def form_of(name: str, x: Tensor) -> Form:
    """The form of an input.

    Raises:
        InvalidInput: it is no plain tensor.
    """
    if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.layout is not torch.strided or x.is_nested:
        given = "a nested tensor" if x.is_nested else f"of layout {x.layout}"
        raise InvalidInput(
            f"{name} is {given}; accepted: plain tensors (pack sequences of several lengths, see "
            "Sequences.packed_from)"
        )
    return x.shape, x.stride(), x.dtype, x.device


def check_forms(q: Form, k: Form, v: Form, q_layout: str, kv_layout: str) -> None:
    """Check that the three belong together, in layouts such as `[B, H, S, D]`.

    Raises:
        InvalidInput: they do not.
    """
    for name, form, layout in (("q", q, q_layout), ("k", k, kv_layout), ("v", v, kv_layout)):
        shape, stride, dtype, device = form
        if len(shape) != layout.count(",") + 1:
            raise InvalidInput(f"{name} has shape {tuple(shape)}; accepted: {layout}")
        if 0 in shape:
            raise InvalidInput(f"{name} is empty: shape {tuple(shape)}; every size must be >= 1")
        if dtype not in DTYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise InvalidInput(f"{name} is {dtype}; accepted: {names}")
        if (dtype, device) != q[2:]:
            raise InvalidInput(
                f"{name} is {dtype} on {device} and q is {q[2]} on {q[3]}; all three must agree"
            )
        if stride[-1] != 1 and shape[-1] > 1:
            raise InvalidInput(
                f"{name} has strides {stride}; its last dimension must be contiguous "
                "(call .contiguous())"
            )
    if k[0][:-1] != v[0][:-1]:
        raise InvalidInput(
            f"k {tuple(k[0])} and v {tuple(v[0])} must have the same shape, but for the head dim"
        )
    if "page_size" in kv_layout and k[0] != v[0]:
        raise InvalidInput(
            f"k {tuple(k[0])} and v {tuple(v[0])} have pages of different head dims, and padding "
            "would copy the whole cache; keep both in one head dim, v with zeros at its end"
        )
    if q[0][-1] != k[0][-1]:
        raise InvalidInput(f"head dims differ: q has {q[0][-1]}, k has {k[0][-1]}")
    if len(q[0]) == 4 and q[0][0] != k[0][0]:
        raise InvalidInput(f"batch sizes differ: q has {q[0][0]}, k has {k[0][0]}")


def check_heads(heads: int, kv_heads: int) -> None:
    """Check that key/value heads are shared evenly.

    Raises:
        InvalidInput: they are not.
    """
    if heads % kv_heads:
        raise InvalidInput(
            f"{heads} query heads do not share {kv_heads} key/value heads evenly; "
            "accepted: a multiple of the key/value heads"
        )
