"""The cheapest configuration of a model that stays near dense attention, by length."""

from .profile import TuneOptions, tune
from .search import ErrorBudget, Reading, Search, Trial

__all__ = ["ErrorBudget", "Reading", "Search", "Trial", "TuneOptions", "tune"]
