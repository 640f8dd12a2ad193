"""Gluon kernels for Hopper on a CPU: `emulate` runs them and raises where they are wrong.

Found are accesses outside a tensor, integers that overflow, shared memory that is read before it
was written or overwritten before it was read, barriers whose counts or phases are wrong, and
deadlocks. Asynchronous work ends as late as the kernel's waits allow, and partitions take turns in
an order drawn by a seed. Layouts are ignored, warps of a partition run in step, and a fence by any
partition counts for all of them: that a kernel also compiles is for another test.

What Gluon does and what is modelled of it stands in README.md, and how to add an operation.
"""

from .errors import (
    BarrierError,
    DeadlockError,
    EmulationError,
    IntegerOverflowError,
    OutOfBoundsError,
    RaceError,
)
from .launch import emulate

__all__ = [
    "BarrierError",
    "DeadlockError",
    "EmulationError",
    "IntegerOverflowError",
    "OutOfBoundsError",
    "RaceError",
    "emulate",
]
