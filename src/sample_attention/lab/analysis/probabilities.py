"""Exact softmax of chosen query rows over every key they see, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...errors import InvalidInput
from ...problem import Problem, as_batched, keys_of

CHUNK_PAIRS = 2**23
"""Most pairs of a row and a key that are held at once; bounds the memory."""


def sample_rows(q_len: int, num_rows: int, seed: int = 0) -> Tensor:
    """Distinct random query rows, sorted: int64 `[min(num_rows, q_len)]`.

    Raises:
        InvalidInput: no rows are asked for.
    """
    if num_rows < 1:
        raise InvalidInput(f"num_rows is {num_rows}; at least one row is needed")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(q_len, generator=generator, device="cpu")[:num_rows].sort().values


def row_probabilities(
    q: Tensor, k: Tensor, problem: Problem, rows: Tensor, *, n: int, h: int,
    scale: float | None = None,
) -> Iterator[tuple[slice, Tensor]]:  # fmt: skip
    """Causal softmax of rows of one sequence and head.

    Args:
        q: as the problem describes it.
        k: likewise.
        problem: describes the tensors.
        rows: int64 `[R]`, query rows within the call.
        n: sequence.
        h: query head.
        scale: multiplies q.k; None: `D ** -0.5`.

    Yields:
        Which of `rows`, and their probabilities `[r, Skv]` over the keys of the sequence, in fp32
        (fp64 for fp64 tensors).
    """
    b, q_start, q_len, _, kv_len = problem.sequences.rows()[n]
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    queries = as_batched(q, problem)[b, h, q_start : q_start + q_len]
    keys = keys_of(as_batched(k, problem)[:, h // problem.group_size], problem.sequences, n)
    keys, place = keys.to(exact), torch.arange(kv_len, device=k.device)
    height = max(1, CHUNK_PAIRS // kv_len)
    for start in range(0, len(rows), height):
        part = slice(start, start + height)
        last = rows[part, None].to(q.device) + (kv_len - q_len)
        scores = (queries[last[:, 0] - (kv_len - q_len)].to(exact) * problem.scale(scale)) @ keys.T
        yield part, torch.softmax(scores.masked_fill_(place > last, -torch.inf), dim=-1)


def check_rows(rows: Tensor, q_len: int) -> Tensor:
    """The rows themselves.

    Raises:
        InvalidInput: they are not integers in [0, q_len), or there are none.
    """
    if rows.dim() != 1 or not len(rows) or rows.is_floating_point():
        raise InvalidInput(f"rows must be a 1-D integer tensor, got {rows.dtype} {rows.shape}")
    if int(rows.min()) < 0 or int(rows.max()) >= q_len:
        raise InvalidInput(
            f"rows lie in [{int(rows.min())}, {int(rows.max())}]; accepted: 0 to {q_len - 1}"
        )
    return rows.long()
