"""The cheapest configuration of a model that stays near dense attention, by length."""

from .profile import TuneOptions, tune
from .search import Budget, Reading, Search, Trial

__all__ = ["Budget", "Reading", "Search", "Trial", "TuneOptions", "tune"]
