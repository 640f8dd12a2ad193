"""What the emulator objects to, with the line of the kernel that did it."""

from __future__ import annotations

import inspect
import linecache

MARK = "__gluon_emulator__"
"""A global of every function that the emulator runs."""


def kernel_line() -> str:
    """The innermost line of emulated code that is running in this thread."""
    frame = inspect.currentframe()
    while frame is not None and MARK not in frame.f_globals:
        frame = frame.f_back
    if frame is None:
        return "outside a kernel"
    code, line = frame.f_code, frame.f_lineno
    source = linecache.getline(code.co_filename, line).strip()
    return f"{code.co_filename}:{line} in {code.co_name}: `{source}`"


class EmulationError(RuntimeError):
    """The kernel did something that is wrong, or that the emulator does not know."""

    def __init__(self, message: str, line: str | None = None) -> None:
        super().__init__(f"{message}\n  at {line or kernel_line()}")


class OutOfBoundsError(EmulationError):
    """An access outside a tensor, or outside shared memory."""


class IntegerOverflowError(EmulationError):
    """A result that its integer type cannot hold."""


class RaceError(EmulationError):
    """Memory was touched without waiting for what else is under way there."""


class BarrierError(EmulationError):
    """A barrier that was set up or counted wrongly."""


class DeadlockError(EmulationError):
    """Every partition waits and nothing is under way that could wake one."""
