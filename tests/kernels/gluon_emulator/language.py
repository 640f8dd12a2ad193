"""Gluon's operations, by the names kernels call them by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from triton.experimental.gluon import language as gl

from .errors import EmulationError
from .memory import lanes
from .values import Value, arithmetic, as_value, fits, operands

MASKED_FLOAT, MASKED_INTEGER = math.nan, -77
"""What a masked load yields without `other`: nothing that can be used by mistake."""


def _math(compute: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Value]:
    def apply(x: Any) -> Value:
        value = as_value(x)
        if value.dtype not in (gl.float32, gl.float64):
            raise EmulationError(f"this function is for fp32 and fp64; got {value.dtype}")
        return value.with_data(compute(value.data))

    return apply


def _fold(x: Value, axis: int | None, combine: Callable[[Any, Any], Any], keep_dims: bool) -> Value:
    """Halve an axis again and again, as its length is a power of two."""
    data, dim = (x.data.reshape(-1), 0) if axis is None else (x.data, axis)
    while (n := data.shape[dim]) > 1:
        data = combine(data.narrow(dim, 0, n // 2), data.narrow(dim, n // 2, n // 2))
    return x.with_data(data if keep_dims else data.squeeze(dim))


Assembly = Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]
"""What a piece of assembly computes from whole tensors."""


class Language:
    """The module `gl`; what it lacks is Gluon's own if that is a type or a layout."""

    def __init__(self) -> None:
        self.program_ids: tuple[int, ...] = ()
        self.grid: tuple[int, ...] = ()
        self.assembly: Mapping[str, Assembly] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(gl, name)
        if isinstance(found, type | gl.dtype):
            return found
        raise EmulationError(f"gl.{name} is not emulated")

    exp, exp2, log, log2 = (
        staticmethod(_math(f)) for f in (torch.exp, torch.exp2, torch.log, torch.log2)
    )
    sqrt, rsqrt, floor, ceil = (
        staticmethod(_math(f)) for f in (torch.sqrt, torch.rsqrt, torch.floor, torch.ceil)
    )

    def constexpr(self, x: Any) -> Any:
        return x

    def static_range(self, *bounds: int) -> range:
        return range(*bounds)

    def static_assert(self, condition: Any, message: str = "") -> None:
        if not condition:
            raise EmulationError(f"static_assert: {message}")

    def device_assert(self, condition: Any, message: str = "", mask: Any = None) -> None:
        held = as_value(condition).data | ~as_value(True if mask is None else mask).data
        if not bool(held.all()):
            raise EmulationError(f"device_assert: {message}")

    def assume(self, condition: Any) -> None:
        self.device_assert(condition, "what is assumed does not hold")

    def multiple_of(self, x: Any, values: Any) -> Any:
        return x

    max_contiguous = max_constancy = multiple_of

    def program_id(self, axis: int) -> Value:
        return as_value(self.program_ids[axis])

    def num_programs(self, axis: int) -> Value:
        return as_value(self.grid[axis])

    def arange(self, start: int, end: int, layout: Any = None) -> Value:
        return Value(torch.arange(start, end), gl.int32)

    def full(self, shape: Sequence[int], value: Any, dtype: Any, layout: Any = None) -> Value:
        scalar = as_value(value).to(dtype)
        return scalar.with_data(scalar.data.expand(*shape))

    def zeros(self, shape: Sequence[int], dtype: Any, layout: Any = None) -> Value:
        return self.full(shape, 0, dtype, layout)

    def full_like(
        self, x: Value, value: Any, shape: Any = None, dtype: Any = None, layout: Any = None
    ) -> Value:
        return self.full(shape or x.shape, value, dtype or x.dtype, layout)

    def zeros_like(
        self, x: Value, shape: Any = None, dtype: Any = None, layout: Any = None
    ) -> Value:
        return self.full_like(x, 0, shape, dtype, layout)

    def cast(self, x: Any, dtype: Any, bitcast: bool = False) -> Value:
        return as_value(x).to(dtype, bitcast)

    def to_tensor(self, x: Any) -> Value:
        return as_value(x)

    def convert_layout(self, x: Value, layout: Any, assert_trivial: bool = False) -> Value:
        return x

    set_auto_layout = convert_layout

    def expand_dims(self, x: Value, axis: int) -> Value:
        return x.with_data(x.data.unsqueeze(axis))

    def permute(self, x: Value, dims: Sequence[int]) -> Value:
        return x.with_data(x.data.permute(*dims))

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        return x.with_data(x.data.reshape(*shape))

    def broadcast(self, x: Value, y: Value) -> tuple[Value, Value]:
        a, b = torch.broadcast_tensors(x.data, y.data)
        return x.with_data(a), y.with_data(b)

    def where(self, condition: Any, x: Any, y: Any) -> Value:
        chosen = as_value(condition).data
        if chosen.dtype != torch.bool:
            raise EmulationError("the condition of `where` must be boolean")
        a, b, dtype = operands(x, y)
        return Value(torch.where(chosen, a, b), dtype)

    def maximum(self, x: Any, y: Any) -> Value:
        return arithmetic(x, y, torch.fmax if _is_float(x, y) else torch.maximum)

    def minimum(self, x: Any, y: Any) -> Value:
        return arithmetic(x, y, torch.fmin if _is_float(x, y) else torch.minimum)

    def abs(self, x: Any) -> Value:
        return as_value(x).with_data(as_value(x).data.abs())

    def fma(self, x: Any, y: Any, z: Any) -> Value:
        return x * y + z

    def fdiv(self, x: Any, y: Any) -> Value:
        return x / y

    def cdiv(self, x: Any, y: Any) -> Any:
        return (x + (y - 1)) // y

    def max(self, x: Value, axis: int | None = None, keep_dims: bool = False) -> Value:
        value = _widened(x)
        pick = torch.fmax if value.data.is_floating_point() else torch.maximum
        return _fold(value, axis, pick, keep_dims)

    def min(self, x: Value, axis: int | None = None, keep_dims: bool = False) -> Value:
        value = _widened(x)
        pick = torch.fmin if value.data.is_floating_point() else torch.minimum
        return _fold(value, axis, pick, keep_dims)

    def sum(
        self, x: Value, axis: int | None = None, keep_dims: bool = False, dtype: Any = None
    ) -> Value:
        value = x if dtype is None and not x.dtype.is_int() else x.to(dtype or _widened(x).dtype)
        out = _fold(value, axis, torch.add, keep_dims)
        return out.with_data(fits(out.data, out.dtype))

    def reduce(
        self, x: Value, axis: int | None, combine: Callable[..., Value], keep_dims: bool = False
    ) -> Value:
        def join(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return combine(x.with_data(a), x.with_data(b)).data

        return _fold(x, axis, join, keep_dims)

    def inline_asm_elementwise(
        self, asm: str, _constraints: str, args: Sequence[Value], dtype: Any, **_: Any
    ) -> Any:
        if asm not in self.assembly:
            raise EmulationError("assembly that `emulate` was not told the meaning of")
        found = self.assembly[asm](*(x.data for x in args))
        if isinstance(found, tuple):
            return tuple(Value(x, kind) for x, kind in zip(found, dtype, strict=True))
        return Value(found, dtype)

    def load(self, pointer: Value, mask: Any = None, other: Any = None, **hints: Any) -> Value:
        memory, offsets, active = lanes(pointer, mask)
        memory.check(offsets, active, "loads")
        if other is None:
            fill: Any = MASKED_FLOAT if memory.flat.is_floating_point() else MASKED_INTEGER
        else:
            fill = as_value(other).to(memory.dtype).data
        return Value(memory.read(offsets, active, fill), memory.dtype)

    def store(self, pointer: Value, value: Any, mask: Any = None, **hints: Any) -> None:
        memory, offsets, active = lanes(pointer, mask)
        memory.check(offsets, active, "stores")
        data = as_value(value).to(memory.dtype).data
        memory.write(offsets, active, data.expand(offsets.shape))

    def atomic_add(self, pointer: Value, value: Any, mask: Any = None, **hints: Any) -> Value:
        memory, offsets, active = lanes(pointer, mask)
        memory.check(offsets, active, "adds to")
        data = as_value(value).to(memory.dtype).data.expand(offsets.shape)
        before = memory.read(offsets, active, 0).clone()
        for i in active.nonzero().tolist():
            at = offsets[tuple(i)]
            before[tuple(i)] = memory.flat[at]
            memory.flat[at] += data[tuple(i)]
        return Value(before, memory.dtype)


def _is_float(x: Any, y: Any) -> bool:
    return any(as_value(a).data.is_floating_point() for a in (x, y))


def _widened(x: Value) -> Value:
    """As extrema are computed: small floats in fp32, small integers in 32 bits."""
    if x.dtype.primitive_bitwidth >= 32:
        return x
    return x.to(gl.int32 if x.dtype.is_int() else gl.float32)
