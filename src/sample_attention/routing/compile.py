"""The package under `torch.compile`: one operator for the whole call, and breaks for its steps.

`torch.ops.sample_attention.sample_attention` takes what a graph can hold: tensors, numbers and
text. It runs the function that eager code calls, so both give the same result. There is one
difference: a graph holds tables and no host rows, so on a GPU the longest sequence of a packed or
padded batch decides for all whether they run sparse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor, library

from ..config import as_config, config_from_json
from ..errors import InvalidInput
from ..problem import Sequences
from ..problem.modes import as_autocast, autocast_dtype
from ..selection.rule import NamedRule
from .policy import Policy

P = ParamSpec("P")
R = TypeVar("R")

NAME = "sample_attention::sample_attention"
OPERATOR_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, str config, float? scale, str backend, str policy, "
    "Tensor[] tables, SymInt[] bounds) -> Tensor"
)


class Attention(Protocol):
    """The signature of `sample_attention.sample_attention`."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, config: NamedRule = "default", *,
        scale: float | None = None, sequences: Sequences | None = None, backend: str = "auto",
        policy: Policy = "auto",
    ) -> Tensor:  # fmt: skip
        """Attention of q over k and v."""
        ...


def operator(function: Attention) -> Attention:
    """Register the function as the operator, which then stands in for it while a graph is traced.

    Outside `torch.compile` calls go straight to the function.
    """

    def run(  # noqa: PLR0913, PLR0917
        q: Tensor, k: Tensor, v: Tensor, config: str, scale: float | None, backend: str,
        policy: Policy, tables: list[Tensor], bounds: list[int],
    ) -> Tensor:  # fmt: skip
        settings, sequences = config_from_json(config), restore_sequences(tables, bounds)
        out = function(
            q, k, v, settings, scale=scale, sequences=sequences, backend=backend, policy=policy
        )
        return out.contiguous()  # a graph is told the strides before anything runs

    op = library.custom_op(NAME, run, mutates_args=(), schema=OPERATOR_SCHEMA)
    op.register_fake(_shape_of_out)
    op.register_autograd(_refuse_backward)

    @functools.wraps(function)
    def call(
        q: Tensor, k: Tensor, v: Tensor, config: NamedRule = "default", *,
        scale: float | None = None, sequences: Sequences | None = None, backend: str = "auto",
        policy: Policy = "auto",
    ) -> Tensor:  # fmt: skip
        if not torch.compiler.is_compiling():
            return function(
                q, k, v, config, scale=scale, sequences=sequences, backend=backend, policy=policy
            )
        (tables, bounds), given, dtype = (
            flatten_sequences(sequences),
            q.dtype,
            autocast_dtype(q.device),
        )
        if dtype is not None:  # when the graph runs, nobody knows where autocast was
            q, k, v = (as_autocast(x, dtype) for x in (q, k, v))
        out = op(q, k, v, as_config(config).to_json(), scale, backend, policy, tables, bounds)
        return out.to(given)

    return call


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Make `torch.compile` break its graph at the function, and run it as it is.

    With `fullgraph=True` it raises torch's error for a break.
    """

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return cast("Callable[P, R]", torch.compiler.disable(function))(*args, **options)
        return function(*args, **options)

    return call


def flatten_sequences(sequences: Sequences | None) -> tuple[list[Tensor], list[int]]:
    """Sequences as the tensors and numbers that an operator takes."""
    if sequences is None:
        return [], []
    total = -1 if sequences.total_q_len is None else sequences.total_q_len
    kind = int(sequences.packed), int(sequences.uniform)
    others = [x for x in (sequences.page_table, sequences.totals) if x is not None]
    bounds = [sequences.max_q_len, sequences.max_kv_len, *kind, total, sequences.page_size]
    return [sequences.table, *others], bounds


def restore_sequences(tables: list[Tensor], bounds: list[int]) -> Sequences | None:
    """The inverse of `flatten_sequences`."""
    if not tables:
        return None
    max_q_len, max_kv_len, packed, uniform, total, page_size = bounds
    return Sequences(
        tables[0], max_q_len, max_kv_len, packed=bool(packed), uniform=bool(uniform),
        page_table=tables[1] if page_size else None, page_size=page_size,
        total_q_len=None if total < 0 else total, totals=None if total < 0 else tables[1],
    )  # fmt: skip


def _shape_of_out(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    del k
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _refuse_backward(*_: object) -> None:
    raise InvalidInput(
        "q, k or v requires a gradient, and sample_attention has no backward under torch.compile; "
        "call it under torch.no_grad() or torch.inference_mode()"
    )
