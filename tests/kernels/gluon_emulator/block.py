"""One thread block: its partitions, its barriers, and what is under way in it.

Partitions are threads of which one runs at a time. When it waits or signals, a random one of those
that can go on does so. Asynchronous work ends as late as it may: copies only when every partition
waits, a wgmma only when its own partition waits for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from triton.experimental.gluon import language as gl

from .errors import BarrierError, DeadlockError, EmulationError, RaceError, kernel_line
from .memory import Memory, Shared
from .values import Value

if TYPE_CHECKING:
    from random import Random

THREADS_PER_WARP = 32
SHARED_BYTES = 227 * 1024
WARPS_OF_A_GROUP = 4


@dataclass
class Barrier:
    """An mbarrier: a phase completes when as many have arrived as it was initialised for."""

    count: int
    pending: int
    phase: int = 0

    def arrive(self, count: int, line: str | None = None) -> None:
        """Take `count` from what the current phase waits for."""
        if count > self.pending:
            raise BarrierError(
                f"{count} arrivals at a barrier that waits for {self.pending} of {self.count}", line
            )
        self.pending -= count
        if self.pending == 0:
            self.phase += 1
            self.pending = self.count

    def passed(self, parity: int) -> bool:
        """Whether the latest phase of this parity is complete; on a new barrier that of 1 is."""
        return self.phase % 2 != parity


@dataclass(frozen=True)
class Copy:
    """An asynchronous copy from global to shared memory that was issued."""

    shared: Shared
    memory: Memory
    offsets: torch.Tensor
    active: torch.Tensor

    def finish(self) -> None:
        """Do it; elements that are masked out become zero."""
        self.shared.copying.fill_(False)
        self.shared.unfenced.fill_(False)
        self.shared.fill(self.memory.read(self.offsets, self.active, 0))


@dataclass(frozen=True)
class Arrival:
    """Arrivals at a barrier once all earlier copies of the partition are done."""

    barrier: Barrier
    count: int
    line: str

    def finish(self) -> None:
        """Arrive."""
        self.barrier.arrive(self.count, self.line)


@dataclass(frozen=True)
class Commit:
    """The end of a group of copies."""

    def finish(self) -> None:
        """Nothing to do: `wait_group` counts it."""


@dataclass(repr=False)
class Accumulator:
    """The result of a wgmma, which is there once the partition has waited for it."""

    shape: list[int]
    value: Value | None = None

    def __repr__(self) -> str:
        return "the result of a wgmma that was not waited for"


@dataclass(frozen=True)
class Mma:
    """A wgmma that was issued: result = a @ b + start."""

    a: Value | Shared
    b: Shared
    start: Value | Accumulator | None
    result: Accumulator

    @property
    def read(self) -> list[Shared]:
        return [x for x in (self.a, self.b) if isinstance(x, Shared)]

    def finish(self) -> None:
        """Read the operands and compute in float32."""
        a, b = (x.data if isinstance(x, Value) else x.read() for x in (self.a, self.b))
        for x in self.read:
            x.reading.sub_(1)
        out = a.float() @ b.float()
        start = self.start.value if isinstance(self.start, Accumulator) else self.start
        if start is not None:
            out = out + start.data
        self.result.value = Value(out, gl.float32)


@dataclass
class Partition:
    """Warps that run one function; `ready` tells whether what it waits for has happened."""

    num_warps: int
    done: bool = False
    line: str = ""
    ready: Callable[[], bool] = lambda: True
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    copies: deque[Copy | Arrival | Commit] = field(default_factory=deque)
    mmas: deque[Mma] = field(default_factory=deque)

    @property
    def num_threads(self) -> int:
        return self.num_warps * THREADS_PER_WARP

    def retire(self, outstanding: int) -> None:
        """Finish the oldest wgmmas until so many are left."""
        while len(self.mmas) > outstanding:
            self.mmas.popleft().finish()

    def close(self) -> None:
        """Raise `RaceError` if it ends with wgmmas nobody waited for."""
        if self.mmas:
            raise RaceError(f"{len(self.mmas)} wgmma were never waited for", self.line or None)


class _AbandonedError(Exception):
    """Another partition failed."""


class Block:
    """A thread block of one program; `random` decides who goes on where several can."""

    def __init__(self, num_warps: int, random: Random) -> None:
        self.main = Partition(num_warps)
        self.partitions = [self.main]
        self.running = self.main
        self.random = random
        self.failure: BaseException | None = None
        self.barriers: dict[int, Barrier] = {}
        self.allocations: list[Shared] = []

    def allocate(self, dtype: Any, shape: Sequence[int]) -> Shared:
        """Shared memory, as long as there is some."""
        self.allocations.append(Shared.allocate(dtype, shape))
        used = sum(x.data.nbytes for x in self.allocations)
        if used > SHARED_BYTES:
            raise EmulationError(f"{used} bytes of shared memory; a block has {SHARED_BYTES}")
        return self.allocations[-1]

    def barrier(self, shared: Shared) -> Barrier:
        """The barrier that was initialised there."""
        if shared.data.data_ptr() not in self.barriers:
            raise BarrierError("no barrier was initialised here")
        return self.barriers[shared.data.data_ptr()]

    def fence(self) -> None:
        """Make what was stored from registers visible to wgmma."""
        for x in self.allocations:
            x.unfenced.fill_(False)

    def close(self) -> None:
        """End the program: nothing may be left in flight but copies, which end well."""
        self.main.close()
        for event in self.main.copies:
            event.finish()

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let the other partitions go on, and return once `ready`."""
        me = self.running
        me.ready, me.line = ready, kernel_line()
        following = self._next()
        if following is not me:
            self._pass_to(following)
            me.turn.acquire()
            if self.failure:
                raise _AbandonedError

    def specialize(self, functions: Sequence[tuple[Any, Any]], num_warps: Sequence[int]) -> Any:
        """Run the first function in this partition and each other one in a partition of its own."""
        workers = [Partition(n) for n in num_warps]
        self.partitions = [self.main, *workers]
        threads = [
            threading.Thread(target=self._work, args=(worker, function, args), daemon=True)
            for worker, (function, args) in zip(workers, functions[1:], strict=True)
        ]
        for thread in threads:
            thread.start()
        default, args = functions[0]
        try:
            self.pause()
            results = default(*args)
            self.pause(lambda: all(x.done for x in workers))
        except _AbandonedError:
            raise self.failure or EmulationError("a partition was abandoned") from None
        except BaseException as failure:
            self._abandon(failure)
            raise
        finally:
            for thread in threads:
                thread.join()
        for x in workers:  # what nobody waited for yet may still end
            self.main.copies.extend(x.copies)
        self.partitions = [self.main]
        return results

    def _work(self, me: Partition, function: Any, args: Any) -> None:
        me.turn.acquire()
        try:
            if not self.failure:
                function(*args)
                me.close()
                me.done = True
                self._pass_to(self._next())
        except _AbandonedError:
            pass
        except BaseException as failure:  # whatever it is, the main thread raises it
            me.done = True
            self._abandon(failure)

    def _abandon(self, failure: BaseException) -> None:
        self.failure = self.failure or failure
        for other in self.partitions:
            if other is not self.running:
                other.turn.release()

    def _pass_to(self, following: Partition) -> None:
        self.running = following
        following.turn.release()

    def _next(self) -> Partition:
        """Who goes on: one that can, after asynchronous work if none can yet."""
        while not (able := [x for x in self.partitions if not x.done and x.ready()]):
            if not self._finish_copies():
                waiting = "\n  ".join(x.line for x in self.partitions if not x.done)
                raise DeadlockError(f"every partition waits:\n  {waiting}")
        return self.random.choice(able)

    def _finish_copies(self) -> bool:
        """Finish copies of one partition up to an arrival that waits for them, if any does."""
        arriving = [x for x in self.partitions if any(isinstance(e, Arrival) for e in x.copies)]
        if not arriving:
            return False
        copies = self.random.choice(arriving).copies
        while not isinstance(event := copies.popleft(), Arrival):
            event.finish()
        event.finish()
        return True
