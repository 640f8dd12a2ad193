"""What was given: tensors, and where each sequence's queries and keys lie in them."""

from .problem import Problem, SequenceRow, Sequences, as_batched, in_one_width, keys_of

__all__ = ["Problem", "SequenceRow", "Sequences", "as_batched", "in_one_width", "keys_of"]
