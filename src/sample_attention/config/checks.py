"""What a number may be: a field of a configuration or of a rule, a length."""

from __future__ import annotations

from numbers import Integral, Real

from ..errors import InvalidConfig, InvalidInput

LARGEST = 2**30
"""Largest count that a field takes: beyond every prompt, and within int32."""

MOST_CONTRAST = 64
"""Largest `depth_contrast`."""


_PLAIN = (type(None), bool, int, float)


def plain(value: object) -> object:
    """A number of another library, such as numpy, as one of Python's own; all else as it is."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Integral):
        return int(value)
    try:
        return float(value) if isinstance(value, Real) else value
    except OverflowError:  # more than every number that is accepted
        return value


def as_length(name: str, value: object) -> int:
    """The value as an int.

    Raises:
        InvalidInput: it is no integer from 1 up.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InvalidInput(f"{name} must be an integer from 1 up, got {value!r}")
    return number


def check_share(name: str, value: object) -> None:
    """Raise InvalidConfig unless the value is in (0, 1], or None where the field may be."""
    if value is None and name not in ("coverage", "dense_above", "head_coverage"):
        return
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number <= 1:
        raise InvalidConfig(f"{name} must be a number in (0, 1], got {value!r}")


def check_count(name: str, value: object, lowest: int) -> None:
    """Raise InvalidConfig unless the value is an integer from `lowest` on, or may be None."""
    if value is None and name in ("coverage_at", "segment", "chunk_tails", "pool", "probes"):
        return
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or not lowest <= number <= LARGEST:
        raise InvalidConfig(f"{name} must be an integer from {lowest} to {LARGEST}, got {value!r}")


def check_contrast(value: object) -> None:
    """Raise InvalidConfig unless the value may be a `depth_contrast`."""
    number = plain(value)
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not 1 <= number <= MOST_CONTRAST
    ):
        raise InvalidConfig(
            f"depth_contrast must be a number from 1 to {MOST_CONTRAST}, got {value!r}"
        )
