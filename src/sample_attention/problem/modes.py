"""What surrounds a call and must not show in its result: gradients, autocast, modes of tensors.

Autocast belongs to a thread, and the work on a CPU is done by several, so it is left at the
entrance: inputs are cast as torch casts those of `scaled_dot_product_attention`, and `out` back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from ..errors import InvalidInput

P = ParamSpec("P")
R = TypeVar("R")

_state: Any = torch._C  # pyright: ignore[reportPrivateUsage]  # torch has no public way to ask


def entrance(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse gradients and leave autocast before a public operation, whose first input is q.

    The `out` of its result has the dtype of q as it was given.
    """

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if torch.is_grad_enabled():
            refuse_gradient(*args, *options.values())
        if _state._is_any_autocast_enabled():
            return _outside(function, args, options)
        return function(*args, **options)

    return call


def refuse_gradient(*given: object) -> None:
    """Check that no tensor among the arguments waits for a gradient: there is no backward.

    Raises:
        InvalidInput: one does.
    """
    for x in given:
        if isinstance(x, Tensor) and x.requires_grad:
            raise InvalidInput(
                "q, k or v requires a gradient, and there is no backward here; call it under "
                "torch.no_grad() or torch.inference_mode(), or pass q.detach()"
            )


def within_mode() -> bool:
    """Whether tensors made now are of a mode or a transform: fake ones, those of a trace, of vmap.

    Such a tensor is of no use outside, and one that was made outside may be refused within.
    """
    if _state._len_torch_dispatch_stack():
        return True
    return _state._functorch.peek_interpreter_stack() is not None


def lasting(most: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Remember the last `most` results, which hold tensors, of a function of what can be hashed.

    What a mode would make is made anew on every call; tensors of inference mode are made as others.
    """

    def decorate(make: Callable[P, R]) -> Callable[P, R]:
        remembered = functools.lru_cache(most)(torch.inference_mode(mode=False)(make))

        @functools.wraps(make)
        def call(*args: P.args, **options: P.kwargs) -> R:
            if within_mode():
                return make(*args, **options)
            return remembered(*args, **options)  # pyright: ignore[reportArgumentType]

        return call

    return decorate


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast casts the inputs of attention on a device to, here and now; None: it is off."""
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # there is none for meta tensors
        return None
    return torch.get_autocast_dtype(kind)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of a tensor; most often it is on for none."""
    return _state._is_any_autocast_enabled() and autocast_dtype(x.device) is not None


def as_autocast(x: R, dtype: torch.dtype) -> R:
    """A tensor as autocast passes it on; fp64, what is not floating and no tensor stay."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return cast("R", x.to(dtype))


@contextmanager
def outside_autocast(device: torch.device) -> Generator[Callable[[R], R]]:
    """Leave autocast for a block; yields the cast that autocast would have made of each input.

    What the block computes is to be cast back to the dtype of the q that was given.
    """
    dtype = autocast_dtype(device)
    if dtype is None:
        yield lambda x: x
        return
    with torch.autocast(device.type, enabled=False):
        yield lambda x: as_autocast(x, dtype)


def with_out(result: R, change: Callable[[Tensor], Tensor]) -> R:
    """The result of an operation with its `out`, and that of its parts, changed."""
    given: Any = result
    if isinstance(given, Tensor):
        return cast("R", change(given))
    if not hasattr(given, "out"):
        return result
    changed = change(given.out)
    if hasattr(given, "_replace"):
        return given._replace(out=changed)
    parts = {"parts": tuple(with_out(x, change) for x in given.parts)} if given.parts else {}
    return replace(given, out=changed, **parts)


def _outside(function: Callable[..., R], args: tuple[Any, ...], options: dict[str, Any]) -> R:
    q = args[0] if args else options.get("q")
    if not isinstance(q, Tensor):
        return function(*args, **options)  # which says so
    with outside_autocast(q.device) as as_cast:
        named = {name: as_cast(x) for name, x in options.items()}
        result = function(*map(as_cast, args), **named)
        return with_out(result, lambda out: out.to(q.dtype))
