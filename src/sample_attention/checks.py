"""What a field of a configuration or of a rule may be."""

from __future__ import annotations

from .errors import InvalidConfig

LARGEST = 2**30
"""Largest count that a field takes: beyond every prompt, and within int32."""

MOST_CONTRAST = 64
"""Largest `depth_contrast`."""


def check_share(name: str, value: object) -> None:
    """Raise InvalidConfig unless the value is in (0, 1], or None where the field may be."""
    if value is None and name not in ("coverage", "dense_above", "head_coverage"):
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidConfig(f"{name} must be a number in (0, 1], got {value!r}")


def check_count(name: str, value: object, lowest: int) -> None:
    """Raise InvalidConfig unless the value is an integer from `lowest` on, or may be None."""
    if value is None and name in ("coverage_at", "segment", "chunk_tails", "pool", "probes"):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= LARGEST:
        raise InvalidConfig(f"{name} must be an integer from {lowest} to {LARGEST}, got {value!r}")


def check_contrast(value: object) -> None:
    """Raise InvalidConfig unless the value may be a `depth_contrast`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 1 <= value <= MOST_CONTRAST
    ):
        raise InvalidConfig(
            f"depth_contrast must be a number from 1 to {MOST_CONTRAST}, got {value!r}"
        )
