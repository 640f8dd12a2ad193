"""Gluon kernels for Hopper on a CPU: `emulate` runs them and raises where they are wrong.

Found are accesses outside a tensor, integers that overflow, shared memory that is read before it
was written or overwritten before it was read, barriers whose counts or phases are wrong, and
deadlocks. Asynchronous work ends as late as the kernel's waits allow, and partitions take turns in
an order drawn by a seed. Layouts are ignored, warps of a partition run in step, and a fence by any
partition counts for all of them: that a kernel also compiles is for another test.

What Gluon 3.6 does, from its sources and from the PTX for sm_90, and what is modelled here:

- `mbarrier.arrive(bar, count=n)`: the partition synchronises, then one thread arrives with n. So a
  partition counts once, however many warps it has.
- `async_copy.mbarrier_arrive(bar, increment_count=False)`: every thread of the partition arrives
  when its own earlier copies are done. The barrier needs 32 × warps. With `increment_count=True`
  each thread first adds itself to what the phase waits for, so that the phase needs other arrivals.
- `mbarrier.wait(bar, phase)` returns once the latest phase of that parity is complete. On a new
  barrier that of parity 1 is: producers wait for `phase ^ 1`. Phases and indices are int32.
- `async_copy_global_to_shared` writes zeros where the mask is false; there is no `other`.
- `warpgroup_mma` is one group of its own; `warpgroup_mma_wait(n)` leaves the last n in flight.
- Nothing inserts fences: `fence_async_shared` must stand between stores to shared memory from
  registers and the wgmma that reads them. PTX asks for it after cp.async too; neither what Triton
  makes of `tl.dot` nor CUTLASS has it there, and it is not demanded here.
- `warp_specialize([(default, args), (worker, args), ...], worker_num_warps, worker_num_regs)`:
  the default partition has the kernel's warps and its tuple comes back; the others' results are
  lost. Workers take pointers, scalars, constants, shared memory and tuples of these, no tensors.
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
