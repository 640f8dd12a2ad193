"""The left edge of a window: rows of one aligned run share it, so that no tile is cut by it."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Position = TypeVar("Position", int, Tensor)


def window_edge(position: Position, window: Position | int, alignment: int) -> Position:
    """First key of the window of a row; below 0 where the window begins before the first key.

    Args:
        position: of the row in its sequence; or integers `[...]`.
        window: keys that a row keeps locally, itself included; or a tensor that broadcasts.
        alignment: rows that share one left edge.
    """
    return position // alignment * alignment - window + 1
