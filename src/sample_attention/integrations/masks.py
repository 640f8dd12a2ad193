"""What a mask of transformers lets through, read from the function that defines it.

transformers builds a mask from small functions of two positions. Fused attention is told of a
window and of padding only, so every other ingredient (bidirectional, chunked, image blocks) has to
be seen here, or it would be lost without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UnsupportedAttention


@dataclass(frozen=True)
class MaskParts:
    """The ingredients of a mask that are understood, beside causality.

    Attributes:
        window: keys that a row sees, itself included; None: all.
        packed: int `[B, S]`, changes where another sequence begins, or None.
    """

    window: int | None = None
    packed: Tensor | None = None


def read_mask_function(function: Callable[..., Any]) -> MaskParts:
    """Take a mask function of transformers apart.

    Raises:
        UnsupportedAttention: it is not causal, or has an ingredient that is not known here.
    """
    window: int | None = None
    packed: Tensor | None = None
    causal = False
    for part in _flatten(function):
        name, held = part.__qualname__, inspect.getclosurevars(part).nonlocals
        if name == "causal_mask_function":
            causal = True
        elif name == "sliding_window_overlay.<locals>.inner_mask":
            window = int(held["sliding_window"])
        elif name == "packed_sequence_mask_function.<locals>.inner_mask":
            packed = held["packed_sequence_mask"]
        else:
            raise UnsupportedAttention(
                f"the model asks for the mask '{name.split('.')[0]}'; accepted: causal, with a "
                "sliding window, padding or packed sequences; use another attn_implementation"
            )
    if not causal:
        raise UnsupportedAttention(
            "the model asks for a mask that is not causal; use another attn_implementation"
        )
    return MaskParts(window, packed)


def _flatten(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that `function` is the intersection of."""
    if function.__qualname__ != "and_masks.<locals>.and_mask":
        return [function]
    parts = inspect.getclosurevars(function).nonlocals["mask_functions"]
    return [leaf for part in parts for leaf in _flatten(part)]
