"""The oracle: every rule on one page, dense, with explicit masks, independent of the engines."""

from .oracle import (
    attend,
    probabilities,
    retained_mass,
    select,
    spread_exponent,
)

__all__ = [
    "attend",
    "probabilities",
    "retained_mass",
    "select",
    "spread_exponent",
]
