"""The look that pictures of records share, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_MARKERS = "os^Dv"
"""Told apart with any kind of colour vision; as many pairs as both counts have multiples."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, without a date in it where the format would have one.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
