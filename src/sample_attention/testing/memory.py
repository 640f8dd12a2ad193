"""Memory that shows whether it is read before it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from unittest import mock

import torch
from torch import Tensor


@contextlib.contextmanager
def nan_poison() -> Generator[None]:
    """Within the block memory that torch hands out unwritten holds NaN (integers: the lowest)."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: object, **options: object) -> Tensor:
            x = allocate(*args, **options)
            return x.fill_(torch.nan if x.is_floating_point() else _lowest(x.dtype))

        return call

    with contextlib.ExitStack() as stack:
        for owner, names in (
            (torch, ("empty", "empty_like", "empty_strided")),
            (Tensor, ("new_empty",)),
        ):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, poisoned(getattr(owner, name))))
        yield


def _lowest(dtype: torch.dtype) -> int:
    return 0 if dtype == torch.bool else torch.iinfo(dtype).min
