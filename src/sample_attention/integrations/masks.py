"""What a mask of transformers lets through, read from the function that defines it.

transformers builds a mask from small functions of two positions. Fused attention is told of a
window and of padding only, so every other ingredient (bidirectional, image blocks) has to be seen
here, or it would be lost without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class MaskParts:
    """The ingredients of a mask that are understood.

    Attributes:
        causal: a row sees no later position.
        window: keys that a row sees, itself included; None: all.
        packed: int `[B, S]`, changes where another sequence begins, or None.
        chunk: positions of a sequence that see only each other, and int `[B]`, how much padding
            comes before the first ones; None: all see each other.
        unknown: the name of an ingredient that is not understood, or None.
    """

    causal: bool = False
    window: int | None = None
    packed: Tensor | None = None
    chunk: tuple[int, Tensor] | None = None
    unknown: str | None = None

    @property
    def refusal(self) -> str | None:
        """Why attention under this mask cannot be computed; None where it can."""
        if self.unknown is None and self.causal:
            return None
        given = self.unknown or "without causality"
        return (
            f"stands for the mask '{given}'; accepted: causal, with a sliding window, chunks, "
            "padding or packed sequences"
        )


def read_mask_function(function: Callable[..., Any]) -> MaskParts:
    """Take a mask function of transformers apart."""
    parts = MaskParts()
    for part in _flatten(function):
        name, held = part.__qualname__, inspect.getclosurevars(part).nonlocals
        if name == "causal_mask_function":
            parts = replace(parts, causal=True)
        elif name == "sliding_window_overlay.<locals>.inner_mask":
            window = int(held["sliding_window"])
            parts = replace(parts, window=min(window, parts.window or window))
        elif name == "packed_sequence_mask_function.<locals>.inner_mask":
            parts = replace(parts, packed=held["packed_sequence_mask"])
        elif name == "chunked_overlay.<locals>.inner_mask":
            parts = replace(parts, chunk=(int(held["chunk_size"]), held["left_padding"]))
        else:
            parts = replace(parts, unknown=name.split(".")[0])
    return parts


def _flatten(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that `function` is the intersection of."""
    name, held = function.__qualname__, inspect.getclosurevars(function).nonlocals
    if name == "and_masks.<locals>.and_mask":
        return [leaf for part in held["mask_functions"] for leaf in _flatten(part)]
    if name == "remap_positions_for_packed_sequence.<locals>.inner_mask":
        # Since transformers 5.24: positions within each packed sequence, whose order and distances
        # are the same; chunks, whose places are not, are refused together with packing.
        return _flatten(held["mask_function"])
    if name == "or_masks.<locals>.or_mask":
        some = [part for part in held["mask_functions"] if not _lets_nothing_through(part)]
        if len(some) == 1:
            return _flatten(some[0])
    return [function]


def _lets_nothing_through(function: Callable[..., Any]) -> bool:
    """Whether it joins the tokens of image blocks, and there are none."""
    if function.__qualname__ != "blockwise_overlay.<locals>.inner_mask":
        return False
    ids: Tensor = inspect.getclosurevars(function).nonlocals["block_sequence_ids"]
    return not bool((ids >= 0).any())
