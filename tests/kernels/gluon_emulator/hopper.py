"""The asynchronous operations: cp.async, mbarriers, wgmma and the partitions that use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier as gluon_mbarrier

from .block import WARPS_OF_A_GROUP, Accumulator, Arrival, Barrier, Block, Commit, Copy, Mma
from .errors import BarrierError, EmulationError, RaceError, kernel_line
from .memory import Shared, lanes
from .values import Value, as_value

Operand = Value | Shared
WGMMA_ROWS = 64


class Partitions:
    """What `gl` offers that needs the block: shared memory, warps and their partitions."""

    block: Block

    def num_warps(self) -> int:
        return self.block.running.num_warps

    def num_ctas(self) -> int:
        return 1

    def thread_barrier(self) -> None:
        """Nothing to do: the warps of a partition are not emulated one by one."""

    barrier = thread_barrier  # its name in newer releases of Triton

    def allocate_shared_memory(
        self, element_ty: Any, shape: Sequence[int], layout: Any, value: Value | None = None
    ) -> Shared:
        rank = getattr(layout, "rank", None) or len(layout.order)
        tile = shape[-rank:]  # a dimension before those of the layout counts buffers
        if any(n < 1 or n & (n - 1) for n in tile):
            raise EmulationError(f"dimensions of shared memory must be powers of two: {shape}")
        shared = self.block.allocate(element_ty, shape)
        if value is not None:
            shared.store(value)
        return shared

    def warp_specialize(
        self,
        functions_and_args: Sequence[tuple[Any, Any]],
        worker_num_warps: Sequence[int],
        worker_num_regs: Sequence[int],
    ) -> tuple[Any, ...] | None:
        workers = len(functions_and_args) - 1
        if not workers == len(worker_num_warps) == len(worker_num_regs):
            raise EmulationError(
                f"{workers} workers, but {len(worker_num_warps)} numbers of warps "
                f"and {len(worker_num_regs)} of registers"
            )
        if any(n < 1 or n & (n - 1) for n in worker_num_warps):
            raise EmulationError(f"numbers of warps must be powers of two; got {worker_num_warps}")
        if len(self.block.partitions) > 1:
            raise EmulationError("warp_specialize within a partition")
        for _, args in functions_and_args:
            if not isinstance(args, tuple):
                raise EmulationError(f"arguments of a partition must be a tuple; got {args!r}")
        for _, args in functions_and_args[1:]:
            _check_passable(args)
        results = self.block.specialize(functions_and_args, worker_num_warps)
        if results is not None and not isinstance(results, tuple):
            raise EmulationError("the default partition must return a tuple")
        return results


def _check_passable(args: tuple[Any, ...]) -> None:
    for x in args:
        if isinstance(x, tuple):
            _check_passable(x)
        elif isinstance(x, Accumulator) or (isinstance(x, Value) and x.shape):
            raise EmulationError("a tensor cannot be passed to a worker partition")


class AsyncCopy:
    """The module `async_copy`."""

    def __init__(self, partitions: Partitions) -> None:
        self._of = partitions

    def async_copy_global_to_shared(
        self, smem: Shared, pointer: Value, mask: Any = None, **hints: Any
    ) -> None:
        memory, offsets, active = lanes(pointer, mask)
        if smem.shape != list(offsets.shape) or smem.dtype != memory.dtype:
            raise EmulationError(
                f"copies {memory.dtype} {list(offsets.shape)} to shared {smem.dtype} {smem.shape}"
            )
        memory.check(offsets, active, "copies")
        smem.claim("copies to")
        smem.copying.fill_(True)
        self._of.block.running.copies.append(Copy(smem, memory, offsets, active))

    async_load = async_copy_global_to_shared  # its name in newer releases of Triton

    def mbarrier_arrive(self, mbarrier: Shared, increment_count: bool = True) -> None:
        block = self._of.block
        barrier, threads = block.barrier(mbarrier), block.running.num_threads
        if increment_count:
            barrier.pending += threads
        block.running.copies.append(Arrival(barrier, threads, kernel_line()))

    def commit_group(self) -> None:
        self._of.block.running.copies.append(Commit())

    def wait_group(self, num_outstanding: int = 0) -> None:
        copies = self._of.block.running.copies
        while sum(isinstance(x, Commit) for x in copies) > num_outstanding:
            copies.popleft().finish()


class MBarrier:
    """The module `mbarrier`."""

    MBarrierLayout = gluon_mbarrier.MBarrierLayout

    def __init__(self, partitions: Partitions) -> None:
        self._of = partitions

    def init(self, mbarrier: Shared, count: int) -> None:
        if mbarrier.data.numel() != 1 or mbarrier.dtype != gl.int64:
            raise BarrierError(f"a barrier is one int64; got {mbarrier.dtype} {mbarrier.shape}")
        key, barriers = mbarrier.data.data_ptr(), self._of.block.barriers
        if key in barriers:
            raise BarrierError("the barrier is initialised already; invalidate it first")
        barriers[key] = Barrier(int(count), int(count))

    def invalidate(self, mbarrier: Shared) -> None:
        self._of.block.barrier(mbarrier)
        del self._of.block.barriers[mbarrier.data.data_ptr()]

    def arrive(self, mbarrier: Shared, *, count: int = 1, pred: Any = True) -> None:
        if bool(as_value(pred)):
            self._of.block.barrier(mbarrier).arrive(count)
        self._of.block.pause()

    def wait(
        self, mbarrier: Shared, phase: Any, pred: Any = True, deps: Sequence[Any] = ()
    ) -> None:
        parity = as_value(phase)
        if parity.dtype != gl.int32 or int(parity.data) not in (0, 1):
            raise BarrierError(f"a phase is an int32 of 0 or 1; got {parity.dtype} {parity.data}")
        if bool(as_value(pred)):
            barrier = self._of.block.barrier(mbarrier)
            self._of.block.pause(lambda: barrier.passed(int(parity.data)))


class Wgmma:
    """Functions that `nvidia.hopper` offers by themselves."""

    def __init__(self, partitions: Partitions) -> None:
        self._of = partitions

    def fence_async_shared(self, cluster: bool = False) -> None:
        if cluster:
            raise EmulationError("clusters are not emulated")
        self._of.block.fence()

    def warpgroup_mma_init(self, value: Value) -> Accumulator:
        return Accumulator(value.shape, value)

    def warpgroup_mma(
        self,
        a: Operand,
        b: Shared,
        acc: Any,
        *,
        use_acc: Any = True,
        is_async: bool = False,
        **precision: Any,
    ) -> Any:
        _check_operands(self._of.num_warps(), a, b, acc)
        result = Accumulator(acc.shape)
        mma = Mma(a, b, acc if bool(as_value(use_acc)) else None, result)
        for x in mma.read:
            x.read()
            if bool(x.unfenced.any()):
                raise RaceError("wgmma reads what was stored from registers: fence_async_shared()")
            x.reading.add_(1)
        self._of.block.running.mmas.append(mma)
        self._of.block.pause()
        return result if is_async else self.warpgroup_mma_wait(0, [result])

    def warpgroup_mma_wait(
        self, num_outstanding: int = 0, deps: Sequence[Any] | None = None
    ) -> Any:
        if deps is None:
            raise EmulationError("warpgroup_mma_wait needs deps")
        self._of.block.running.retire(num_outstanding)
        ended = tuple(
            x.value if isinstance(x, Accumulator) and x.value is not None else x for x in deps
        )
        return ended[0] if len(ended) == 1 else ended


def _check_operands(num_warps: int, a: Operand, b: Any, acc: Any) -> None:
    if num_warps % WARPS_OF_A_GROUP:
        raise EmulationError(f"wgmma needs warpgroups of 4 warps; this partition has {num_warps}")
    if not isinstance(b, Shared):
        raise EmulationError("the second operand of wgmma must be in shared memory")
    if a.shape[1] != b.shape[0] or acc.shape != [a.shape[0], b.shape[1]]:
        raise EmulationError(f"wgmma of {a.shape} and {b.shape} into {acc.shape}")
    if a.dtype != b.dtype or a.dtype not in (gl.float16, gl.bfloat16):
        raise EmulationError(f"wgmma of {a.dtype} and {b.dtype}")
    if a.shape[0] % WGMMA_ROWS:
        raise EmulationError(f"wgmma of {a.shape[0]} rows; they come by {WGMMA_ROWS}")
    if isinstance(acc, Value) and acc.dtype != gl.float32:
        raise EmulationError(f"wgmma into {acc.dtype}")
