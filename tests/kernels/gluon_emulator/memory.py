"""Global memory behind a pointer, and shared memory with what is under way in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from .errors import EmulationError, OutOfBoundsError, RaceError
from .values import GLUON, TORCH, Value, as_value, is_integer


class Memory:
    """The elements that a tensor spans, first to last, read and written by offset."""

    def __init__(self, tensor: torch.Tensor, name: str) -> None:
        if tensor.device.type != "cpu" or tensor.dtype not in GLUON:
            raise TypeError(f"{name}: not a tensor the emulator takes: {tensor.dtype}")
        shape, strides = tensor.shape, tensor.stride()
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        size = span if tensor.numel() else 0
        self.name, self.dtype = name, GLUON[tensor.dtype]
        self.flat = tensor.detach().as_strided((size,), (1,), tensor.storage_offset())

    def check(self, offsets: torch.Tensor, active: torch.Tensor, verb: str) -> None:
        """Raise `OutOfBoundsError` if an active offset lies outside."""
        outside = offsets[active & ((offsets < 0) | (offsets >= len(self.flat)))]
        if len(outside):
            raise OutOfBoundsError(
                f"{verb} element {int(outside[0])} of {self.name}, which has {len(self.flat)} "
                f"({len(outside)} elements are outside)"
            )

    def read(self, offsets: torch.Tensor, active: torch.Tensor, other: Any) -> torch.Tensor:
        """Elements in the type in which registers hold them; `other` where not active."""
        found = (
            self.flat[torch.where(active, offsets, 0)]
            if bool(active.any())
            else self.flat.new_zeros(())
        )
        held = found.long() if is_integer(self.dtype) else found
        return torch.where(active, held, other).to(held.dtype)

    def write(self, offsets: torch.Tensor, active: torch.Tensor, data: torch.Tensor) -> None:
        """Store the active elements of `data`."""
        self.flat[offsets[active]] = data[active].to(self.flat.dtype)


def lanes(pointer: Any, mask: Any) -> tuple[Memory, torch.Tensor, torch.Tensor]:
    """What a pointer points into, its offsets, and which of them are active."""
    if not isinstance(pointer, Value) or pointer.memory is None:
        raise EmulationError(f"not a pointer: {pointer!r}")
    active = as_value(True if mask is None else mask)
    if active.data.dtype != torch.bool:
        raise EmulationError(f"a mask must be boolean; got {active.dtype}")
    if active.shape and len(active.shape) != len(pointer.shape):
        raise EmulationError(f"mask of {active.shape} for pointers of {pointer.shape}")
    offsets, chosen = torch.broadcast_tensors(pointer.data, active.data)
    return pointer.memory, offsets, chosen


@dataclass(frozen=True)
class Shared:
    """A view of shared memory: its elements, and for each of them what is known of it.

    `copying`: an asynchronous copy is yet to write it. `reading`: as many wgmma are yet to read
    it. `unfenced`: stored from registers and not yet made visible to wgmma by a fence.
    """

    dtype: Any
    data: torch.Tensor
    written: torch.Tensor
    copying: torch.Tensor
    reading: torch.Tensor
    unfenced: torch.Tensor

    @classmethod
    def allocate(cls, dtype: Any, shape: Sequence[int]) -> Shared:
        """New memory, of which nothing is written."""
        flags = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        written, copying, unfenced = flags
        reading = torch.zeros(shape, dtype=torch.int16)
        return cls(
            dtype, torch.empty(shape, dtype=TORCH[dtype]), written, copying, reading, unfenced
        )

    @property
    def shape(self) -> list[int]:
        return list(self.data.shape)

    @property
    def rank(self) -> int:
        return self.data.ndim

    @property
    def type(self) -> Any:
        return SimpleNamespace(element_ty=self.dtype, shape=self.shape, layout=None)

    def _view(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Shared:
        planes = (self.data, self.written, self.copying, self.reading, self.unfenced)
        return Shared(self.dtype, *map(change, planes))

    def index(self, index: Any) -> Shared:
        """The subview at an index of the first dimension."""
        i = int(as_value(index))
        if not 0 <= i < self.shape[0]:
            raise OutOfBoundsError(f"index {i} of shared memory of {self.shape}")
        return self._view(lambda x: x[i])

    def slice(self, start: int, length: int, dim: int = 0) -> Shared:
        """A range of one dimension."""
        if not 0 <= start <= start + length <= self.shape[dim]:
            raise OutOfBoundsError(f"slice {start}:{start + length} of {self.shape}[{dim}]")
        return self._view(lambda x: x.narrow(dim, start, length))

    def permute(self, order: Sequence[int]) -> Shared:
        """The dimensions in another order."""
        return self._view(lambda x: x.permute(*order))

    def reshape(self, shape: Sequence[int]) -> Shared:
        """The same elements in another shape."""
        return self._view(lambda x: x.view(*shape))

    def load(self, layout: Any = None) -> Value:
        """Read into registers."""
        return Value(self.read(), self.dtype)

    def store(self, value: Value) -> None:
        """Write from registers."""
        if value.shape != self.shape or value.dtype != self.dtype:
            raise EmulationError(
                f"stores {value.dtype} {value.shape} to shared {self.dtype} {self.shape}"
            )
        self.claim("stores to")
        self.unfenced.fill_(True)
        self.fill(value.data)

    def claim(self, verb: str) -> None:
        """Raise `RaceError` unless this memory may be overwritten now."""
        if bool(self.reading.any()):
            raise RaceError(f"{verb} shared memory that a wgmma in flight is yet to read")
        if bool(self.copying.any()):
            raise RaceError(f"{verb} shared memory that an asynchronous copy is yet to write")

    def fill(self, data: torch.Tensor) -> None:
        """Set all elements, which are then written."""
        self.data.copy_(data)
        self.written.fill_(True)

    def read(self) -> torch.Tensor:
        """The elements in the type in which registers hold them, if all of them are there."""
        if bool(self.copying.any()):
            raise RaceError("reads shared memory that an asynchronous copy is yet to write")
        if not bool(self.written.all()):
            raise RaceError("reads shared memory that nothing was written to")
        return self.data.long() if is_integer(self.dtype) else self.data.clone()
