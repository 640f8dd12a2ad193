"""The base of every method: a selector whose density one setting moves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from ..plan import StripePlan
from ..problem import Problem


class Method(ABC):
    """A method to compare with: a selector whose density one setting moves.

    Attributes:
        knob: the settings that `turned` moves, and how.
    """

    knob: ClassVar[str]

    @abstractmethod
    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`."""

    @abstractmethod
    def turned(self, dial: float, kv_len: int) -> Method:
        """The method at a point of its range: from 0, the sparsest, to 1, close to dense."""
