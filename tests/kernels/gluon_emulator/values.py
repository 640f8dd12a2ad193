"""Values in registers: scalars, tensors and pointers, with Triton's rules of types.

Integers are held in 64 bits and checked against their type after every operation. A pointer is an
offset in elements into the memory of one argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from triton.experimental.gluon import language as gl
from triton.language.semantic import TritonSemantic

from .errors import EmulationError, IntegerOverflowError

if TYPE_CHECKING:
    from .memory import Memory

TORCH = {
    gl.int1: torch.bool, gl.float16: torch.float16, gl.bfloat16: torch.bfloat16,
    gl.float32: torch.float32, gl.float64: torch.float64, gl.int8: torch.int8,
    gl.int16: torch.int16, gl.int32: torch.int32, gl.int64: torch.int64, gl.uint8: torch.uint8,
    gl.uint16: torch.uint16, gl.uint32: torch.uint32,
}  # fmt: skip
GLUON = {theirs: ours for ours, theirs in TORCH.items()}

_RULES = TritonSemantic(None)


def is_integer(dtype: Any) -> bool:
    """Whether values of this type are held in 64 bits."""
    return dtype.is_int() and dtype != gl.int1


def fits(data: torch.Tensor, dtype: Any) -> torch.Tensor:
    """`data`, once every element of it is known to be a value of `dtype`."""
    if is_integer(dtype) and data.numel():
        bits = dtype.int_bitwidth
        low, high = (
            (0, 2**bits) if dtype.is_int_unsigned() else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        )
        least, most = int(data.min()), int(data.max())
        if least < low or most >= high:
            raise IntegerOverflowError(f"{least if least < low else most} is not an {dtype}")
    return data


@dataclass(frozen=True, eq=False)
class Value:
    """A scalar or tensor `data` of a type of Gluon's; `memory` is what a pointer points into."""

    data: torch.Tensor
    dtype: Any
    memory: Memory | None = None

    @property
    def shape(self) -> list[int]:
        return list(self.data.shape)

    @property
    def type(self) -> Any:
        if self.data.ndim == 0:
            return self.dtype
        return SimpleNamespace(
            element_ty=self.dtype, scalar=self.dtype, shape=self.shape, layout=None
        )

    def with_data(self, data: torch.Tensor) -> Value:
        """Other elements of the same type."""
        return Value(data, self.dtype, self.memory)

    def to(self, dtype: Any, bitcast: bool = False) -> Value:
        """These values in another type."""
        if bitcast:
            raw = self.data.to(TORCH[self.dtype]).view(TORCH[dtype])
            return Value(raw.long() if is_integer(dtype) else raw, dtype)
        data = self.data
        if is_integer(dtype):
            if data.is_floating_point() and not bool(data.isfinite().all()):
                raise IntegerOverflowError(f"a value that is not finite becomes {dtype}")
            return Value(fits(data.long(), dtype), dtype)
        return Value(data.to(TORCH[dtype]), dtype)

    def __getitem__(self, index: Any) -> Value:
        parts = index if isinstance(index, tuple) else (index,)
        if not self.shape or any(i is not None and i != slice(None) for i in parts):
            raise EmulationError(f"tensors take only `:` and `None` as indices; got {index}")
        return self.with_data(self.data[index])

    def __index__(self) -> int:
        if self.data.ndim or self.data.is_floating_point():
            raise EmulationError(f"not an integer scalar: {self.dtype} {self.shape}")
        return int(self.data)

    def __bool__(self) -> bool:
        if self.data.ndim:
            raise EmulationError(f"a condition must be a scalar; got a tensor {self.shape}")
        return bool(self.data)

    def __neg__(self) -> Value:
        return subtract(0, self)

    def __invert__(self) -> Value:
        return self.with_data(~self.data)


def literal_type(x: bool | float) -> Any:
    """The type that Triton gives to a number in the source."""
    if isinstance(x, bool):
        return gl.int1
    if isinstance(x, float):
        return gl.float32
    return gl.int32 if -(2**31) <= x < 2**31 else gl.int64


def as_value(x: Any) -> Value:
    """A value, from a value or a Python number."""
    if isinstance(x, Value):
        return x
    if not isinstance(x, bool | int | float):
        raise EmulationError(f"not a value: {x!r}")
    dtype = literal_type(x)
    return Value(torch.tensor(x, dtype=torch.int64 if is_integer(dtype) else TORCH[dtype]), dtype)


def _check_ranks(a: Value, b: Value) -> None:
    if a.shape and b.shape and len(a.shape) != len(b.shape):
        raise EmulationError(f"tensors of different rank: {a.shape} and {b.shape}")


def operands(x: Any, y: Any, *, division: bool = False) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Both operands in the type that Triton computes in, and this type."""
    a, b = as_value(x), as_value(y)
    if a.memory or b.memory:
        raise EmulationError("pointers take no arithmetic but the addition of integers")
    _check_ranks(a, b)
    literals = not isinstance(x, Value), not isinstance(y, Value)
    dtype = _RULES.computation_type_impl(a.dtype, literals[0], b.dtype, literals[1], division)
    return a.to(dtype).data, b.to(dtype).data, dtype


def arithmetic(x: Any, y: Any, compute: Callable[..., torch.Tensor]) -> Value:
    """A sum, product or the like in the common type."""
    a, b, dtype = operands(x, y)
    if dtype == gl.int1:
        raise EmulationError("arithmetic of two booleans: cast them first")
    if dtype == gl.int64 and compute(a.double(), b.double()).abs().max() >= 2.0**63:
        raise IntegerOverflowError("the result is not an int64")
    return Value(fits(compute(a, b), dtype), dtype)


def add(x: Any, y: Any) -> Value:
    """`x + y`; one of them may be a pointer."""
    a, b = as_value(x), as_value(y)
    if b.memory:
        a, b = b, a
    return _moved(a, b, b.data) if a.memory else arithmetic(x, y, torch.add)


def subtract(x: Any, y: Any) -> Value:
    """`x - y`; x may be a pointer."""
    a, b = as_value(x), as_value(y)
    return _moved(a, b, -b.data) if a.memory else arithmetic(x, y, torch.sub)


def _moved(pointer: Value, by: Value, offsets: torch.Tensor) -> Value:
    if by.memory or not is_integer(by.dtype):
        raise EmulationError(f"a pointer is moved by integers; got {by.dtype}")
    _check_ranks(pointer, by)
    return pointer.with_data(pointer.data + offsets)


def divide(x: Any, y: Any) -> Value:
    """`x / y`, in floating point."""
    a, b, dtype = operands(x, y, division=True)
    if dtype.is_int():
        a, b, dtype = a.float(), b.float(), gl.float32
    return Value(a / b, dtype)


def divide_integers(x: Any, y: Any, *, remainder: bool = False) -> Value:
    """`x // y` and `x % y`, which round towards zero as in C and not as in Python."""
    a, b, dtype = operands(x, y, division=True)
    if not is_integer(dtype):
        raise EmulationError(f"`//` and `%` are for integers; got {dtype}")
    if not bool(b.all()):
        raise EmulationError("division by zero")
    return Value(torch.fmod(a, b) if remainder else torch.div(a, b, rounding_mode="trunc"), dtype)


def bitwise(x: Any, y: Any, compute: Callable[..., torch.Tensor]) -> Value:
    """A bitwise operation or shift of integers or booleans."""
    a, b, dtype = operands(x, y)
    if not dtype.is_int():
        raise EmulationError(f"a bitwise operation of {dtype}")
    return Value(fits(compute(a, b), dtype), dtype)


def compare(x: Any, y: Any, compute: Callable[..., torch.Tensor]) -> Value:
    """An elementwise comparison."""
    a, b, _ = operands(x, y)
    return Value(compute(a, b), gl.int1)


def _define(name: str, compute: Callable[[Any, Any], Value], *, reflected: bool = True) -> None:
    def forward(self: Value, other: Any) -> Value:
        return compute(self, other)

    def backward(self: Value, other: Any) -> Value:
        return compute(other, self)

    setattr(Value, f"__{name}__", forward)
    if reflected:
        setattr(Value, f"__r{name}__", backward)


_define("add", add)
_define("sub", subtract)
_define("mul", partial(arithmetic, compute=torch.mul))
_define("truediv", divide)
_define("floordiv", divide_integers)
_define("mod", partial(divide_integers, remainder=True))
for _name in ("and", "or", "xor"):
    _define(_name, partial(bitwise, compute=getattr(torch, f"bitwise_{_name}")))
_define("lshift", partial(bitwise, compute=torch.bitwise_left_shift))
_define("rshift", partial(bitwise, compute=torch.bitwise_right_shift))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _define(_name, partial(compare, compute=getattr(torch, _name)), reflected=False)
