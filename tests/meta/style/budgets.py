"""Lengths and counts that a file keeps to."""

from .source import ADAPTERS, is_device_code, parameters

MAX_LINES, MAX_KERNEL_LINES = 400, 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
CHECKED_KEYWORDS = {"config/default.py:preset"}
"""Functions whose open keywords end in a dataclass, which rejects those it does not have."""


def file_length(source):
    limit = MAX_KERNEL_LINES if source.is_kernel else MAX_LINES
    lines = len(source.text.splitlines())
    return [f"{lines} lines; the limit is {limit}"] if lines > limit else []


def function_length(source):
    return [
        f"{f.name} has {f.end_lineno - f.lineno + 1} lines; the limit is {MAX_FUNCTION_LINES}"
        for f, _, _ in source.functions()
        if f.end_lineno - f.lineno + 1 > MAX_FUNCTION_LINES and not is_device_code(f)
    ]


def parameter_count(source):
    return [
        f"{f.name} has {len(parameters(f, method))} parameters; the limit is {MAX_PARAMETERS}"
        for f, public, method in source.functions()
        if public and len(parameters(f, method)) > MAX_PARAMETERS
        if not is_device_code(f)
    ]


def swallowing_parameters(source):
    return [
        f"{f.name} takes **{f.args.kwarg.arg}: name the parameters, so that a typing error shows"
        for f, public, _ in source.functions()
        if public and f.args.kwarg and f"{source.name}:{f.name}" not in CHECKED_KEYWORDS
        if source.name not in ADAPTERS
    ]
