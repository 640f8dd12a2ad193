"""One look for all pictures, and how they are written."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures"

# The palette of Okabe and Ito, which people with any kind of colour vision can tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8a8f98", "#22262e"


def style() -> None:
    """One look for all pictures, and files that come out the same every time."""
    mpl.use("Agg")
    plt.rcParams.update({
        "font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "figure.dpi": 150,
        "figure.facecolor": "white", "savefig.facecolor": "white", "text.color": INK,
        "axes.edgecolor": GREY, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "grid.color": "#e3e5e9", "legend.frameon": False, "svg.hashsalt": "sample-attention",
    })  # fmt: skip


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture and forget it: no date, and in a PNG the colours that suffice."""
    path = FIGURES / name
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None})
    else:
        memory = io.BytesIO()
        figure.savefig(memory)
        Image.open(memory).convert("RGB").quantize(224, Image.Quantize.MAXCOVERAGE).save(
            path, optimize=True
        )
    plt.close(figure)
