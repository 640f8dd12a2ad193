"""The oracle: a page per rule, dense, with explicit masks, independent of the engines."""

from __future__ import annotations

from torch import Tensor

from ..config import Config, MlsysConfig, PaperConfig, SampleAttentionConfig
from .attend import attend, probabilities, retained_mass
from .default import rank_exponent, select_default
from .mlsys import select_mlsys
from .paper import select_paper

__all__ = [
    "attend",
    "probabilities",
    "rank_exponent",
    "retained_mass",
    "select",
]


def select(q: Tensor, k: Tensor, rule: Config, scale: float | None = None) -> Tensor:
    """The mask that a rule selects for q `[H, Sq, D]` and k `[Hkv, Skv, D]`: bool `[H, Sq, Skv]`.

    A row's keys are aligned bottom-right, and no row keeps a key behind it.
    """
    if isinstance(rule, SampleAttentionConfig):
        return select_default(q, k, rule, scale)
    if isinstance(rule, PaperConfig):
        return select_paper(q, k, rule, scale)
    if isinstance(rule, MlsysConfig):
        return select_mlsys(q, k, rule, scale)
    raise TypeError(f"no rule of ours: {rule!r}")
