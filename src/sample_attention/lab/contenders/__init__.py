"""Ways to prefill that are compared: dense attention by its providers, ours, and other methods."""

from .contender import DENSE, DENSITY, TUNED, Contender, parse_method, parse_methods
from .dense import DenseContender, attention_problem, dense_attention, dense_providers

__all__ = [
    "DENSE",
    "DENSITY",
    "TUNED",
    "Contender",
    "DenseContender",
    "attention_problem",
    "dense_attention",
    "dense_providers",
    "parse_method",
    "parse_methods",
]
