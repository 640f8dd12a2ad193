"""Running a kernel: its arguments as Gluon's values, its names as the emulator's."""

from __future__ import annotations

import builtins
import inspect
import itertools
from collections.abc import Iterator, Mapping
from random import Random
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
import triton.language as tl
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import ampere, hopper
from triton.runtime.jit import JITFunction

from .block import Block
from .errors import MARK, EmulationError
from .hopper import AsyncCopy, MBarrier, Partitions, Wgmma
from .language import Assembly, Language
from .memory import Memory
from .values import Value, as_value

OPTIONS = {"num_warps", "num_stages", "maxnreg"}
"""Options of a launch, which a kernel may also have as parameters."""


class Machine(Language, Partitions):
    """The emulated `gl`, and the translation of what else a kernel refers to."""

    def __init__(self) -> None:
        super().__init__()
        copies, barriers, wgmma = AsyncCopy(self), MBarrier(self), Wgmma(self)
        self._known: dict[int, Any] = {
            id(gl): self, id(tl): self, id(hopper.async_copy): copies,
            id(hopper.mbarrier): barriers, id(ampere.mbarrier): barriers,
            id(builtins.range): _range, id(builtins.min): self._least, id(builtins.max): self._most,
        }  # fmt: skip
        modules = (
            (gl, self),
            (hopper, wgmma),
            (hopper.async_copy, copies),
            (hopper.mbarrier, barriers),
        )
        for module, ours in modules:
            names = [n for n in dir(type(ours)) if not n.startswith("_") and hasattr(module, n)]
            self._known.update({id(getattr(module, n)): getattr(ours, n) for n in names})

    def translate(self, x: Any) -> Any:
        """What stands in the emulator for something that a kernel refers to."""
        if id(x) in self._known:
            return self._known[id(x)]
        if isinstance(x, gl.constexpr):
            return x.value
        if isinstance(x, ModuleType):
            return _Module(self, x)
        if isinstance(x, JITFunction):
            self._known[id(x)] = self._rebound(x)
            return self._known[id(x)]
        return x

    def _rebound(self, kernel: JITFunction[Any]) -> FunctionType:
        """The Python function of a kernel with all its names translated."""
        function, seen = kernel.fn, {MARK: True}
        rebound = FunctionType(
            function.__code__, seen, function.__name__, function.__defaults__,
            tuple(CellType() for _ in function.__closure__ or ()),
        )  # fmt: skip
        rebound.__kwdefaults__ = function.__kwdefaults__
        self._known[id(kernel)] = rebound  # before its names, as one may be its own
        for ours, theirs in zip(rebound.__closure__ or (), function.__closure__ or (), strict=True):
            ours.cell_contents = self.translate(theirs.cell_contents)
        for name in _names(function.__code__):
            if name in function.__globals__:
                seen[name] = self.translate(function.__globals__[name])
            elif hasattr(builtins, name):
                seen[name] = self.translate(getattr(builtins, name))
        return rebound

    def _least(self, *values: Any) -> Any:
        return self.minimum(*values) if any(isinstance(x, Value) for x in values) else min(*values)

    def _most(self, *values: Any) -> Any:
        return self.maximum(*values) if any(isinstance(x, Value) for x in values) else max(*values)


class _Module:
    """A module whose contents are translated when they are asked for."""

    def __init__(self, machine: Machine, module: ModuleType) -> None:
        self._machine, self._module = machine, module

    def __getattr__(self, name: str) -> Any:
        return self._machine.translate(getattr(self._module, name))


def _names(code: CodeType) -> set[str]:
    """The names that code refers to, its inner functions' included."""
    inner = (x for x in code.co_consts if isinstance(x, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _range(*bounds: Any) -> Iterator[Value]:
    """`range` with scalars of the type of its bounds."""
    values = [as_value(x) for x in bounds]
    dtype = gl.int64 if any(x.dtype == gl.int64 for x in values) else gl.int32
    return (Value(torch.tensor(i), dtype) for i in range(*map(int, values)))


def emulate(
    kernel: JITFunction[Any], grid: tuple[int, ...], *args: Any,
    num_warps: int = 4, seed: int = 0, assembly: Mapping[str, Assembly] | None = None, **named: Any,
) -> None:  # fmt: skip
    """Run every program of a launch of a Gluon kernel on CPU tensors, one after the other.

    Args:
        kernel: decorated with `gluon.jit`.
        grid: programs along up to three axes.
        args: as in a launch; tensors are updated in place.
        num_warps: of the default partition; also passed to the kernel if it has such a parameter.
        seed: of the order in which partitions go on. Run several.
        assembly: what the pieces of inline assembly compute, by their text.
        named: further arguments of the kernel, and `maxnreg` or `num_stages`, which are ignored.

    Raises:
        EmulationError: the kernel is wrong; the message names its line.
    """
    named = {"num_warps": num_warps, **named}
    given = {n: x for n, x in named.items() if n in kernel.arg_names or n not in OPTIONS}
    machine = Machine()
    machine.assembly = assembly or {}
    function = machine.translate(kernel)
    bound = inspect.signature(function).bind(*args, **given)
    bound.apply_defaults()
    fixed = {p.name for p in kernel.params if p.is_constexpr}
    values = {n: x if n in fixed else _argument(x, n) for n, x in bound.arguments.items()}
    random = Random(seed)
    machine.grid = (*grid, 1, 1)[:3]
    for ids in itertools.product(*(range(n) for n in reversed(machine.grid))):
        machine.program_ids = ids[::-1]
        machine.block = Block(num_warps, random)
        function(**values)
        machine.block.close()


def _argument(x: Any, name: str) -> Any:
    """An argument as the kernel sees it."""
    if isinstance(x, torch.Tensor):
        memory = Memory(x, name)
        return Value(torch.tensor(0), gl.pointer_type(memory.dtype), memory)
    if isinstance(x, tuple):
        return tuple(_argument(part, name) for part in x)
    if x is None:
        return None
    if not isinstance(x, bool | int | float):
        raise EmulationError(f"argument {name}: {x!r}")
    return as_value(x)
