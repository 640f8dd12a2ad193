"""What was given: tensors, and where each sequence's queries and keys lie in them."""

from .problem import Problem, as_batched, in_one_width, part_of, rows_of
from .sequences import SequenceRow, Sequences, keys_of

__all__ = [
    "Problem",
    "SequenceRow",
    "Sequences",
    "as_batched",
    "in_one_width",
    "keys_of",
    "part_of",
    "rows_of",
]
