"""Probabilities of real attention, and the share that a plan keeps: exact, in linear memory."""

from ..capture import AttentionInputs, capture_attention
from .cra import RetainedMass, measure_retained_mass
from .probabilities import sample_rows
from .sparsity import sparsity_degree

__all__ = [
    "AttentionInputs",
    "RetainedMass",
    "capture_attention",
    "measure_retained_mass",
    "sample_rows",
    "sparsity_degree",
]
