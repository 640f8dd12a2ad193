"""Numbers as they are accepted: a field of a configuration or of a rule, a length."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import cast

from ..errors import InvalidConfig, InvalidInput

LARGEST = 2**30
"""Largest count that a field takes: beyond every prompt, and within int32."""

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


def check_share(name: str, value: object) -> float:
    """The value as a float.

    Raises:
        InvalidConfig: it is no number in (0, 1].
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number <= 1:
        raise InvalidConfig(f"{name} must be a number in (0, 1], got {value!r}")
    return float(number)


def check_count(name: str, value: object, lowest: int, highest: int = LARGEST) -> int:
    """The value as an int.

    Raises:
        InvalidConfig: it is no integer from `lowest` to `highest`.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or not lowest <= number <= highest:
        raise InvalidConfig(f"{name} must be an integer from {lowest} to {highest}, got {value!r}")
    return number


def check_ratio(name: str, value: object, highest: float) -> float:
    """The value as a float.

    Raises:
        InvalidConfig: it is no number from 1 to `highest`.
    """
    number = plain(value)
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not 1 <= number <= highest
    ):
        raise InvalidConfig(f"{name} must be a number from 1 to {highest}, got {value!r}")
    return float(number)


def check_shares(name: str, value: object) -> tuple[float, ...]:
    """A tuple of floats, from a tuple, or a list as JSON has it.

    Raises:
        InvalidConfig: it is empty or no sequence, or a part is no number in (0, 1).
    """
    if not isinstance(value, (tuple, list)) or not value:
        raise InvalidConfig(f"{name} must be a share for each query head; got {value!r}")
    shares = tuple([check_share(name, share) for share in cast("Sequence[object]", value)])
    if 1.0 in shares:
        raise InvalidConfig(f"{name} must be below 1; 0.999 keeps next to everything")
    return shares
