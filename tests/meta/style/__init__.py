"""What a source file of the project may be: a check is a function from a file to its violations."""

from .budgets import file_length, function_length, parameter_count, swallowing_parameters
from .names import module_name, vague_names, vocabulary
from .source import Source
from .statements import (
    annotations,
    default_devices,
    docstrings,
    forbidden_statements,
    literal_tolerances,
)

CHECKS = (
    file_length, function_length, parameter_count, swallowing_parameters, docstrings, annotations,
    forbidden_statements, module_name, vocabulary, vague_names, literal_tolerances,
    default_devices,
)  # fmt: skip
"""All that a file of the package has to pass."""

__all__ = ["CHECKS", "Source", "literal_tolerances"]
