"""What was given: the facts of an attention problem, and the checks of its tensors.

Legend: B batch, H query heads, Hkv key/value heads, G = H / Hkv, D head dim, Sq queries, Skv keys,
N sequences, T tokens of a packed batch, P pages of a paged cache.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config.checks import plain
from ..errors import InvalidInput
from .forms import Form, check_forms, check_heads, form_of
from .modes import lasting
from .pages import check_pages
from .sequences import SequenceRow, Sequences, check_lengths

_MOST = sys.float_info.max
"""Largest factor on q.k; integers may be larger."""


@dataclass(frozen=True)
class Problem:
    """The facts a backend or the policy decides on; all known on the host.

    `v_head_dim` is that of v and out; None: `head_dim`, which is all that backends take.
    """

    sequences: Sequences
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    v_head_dim: int | None = None

    @staticmethod
    def of(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences | None = None) -> Problem:
        """Check the tensors and describe them; the only validation of inputs in the package.

        Args:
            q: `[B, H, Sq, D]`, or `[Tq, H, D]` when `sequences` is packed; any strides with the
                last dimension contiguous.
            k: `[B, Hkv, Skv, D]`, `[Tkv, Hkv, D]` or, paged, `[P, page_size, Hkv, D]`.
            v: shape of `k`, where keys are not paged with any head dim.
            sequences: where the sequences lie; None: every batch row is one full sequence.

        Raises:
            InvalidInput: anything that does not form an attention problem.
        """
        forms = form_of("q", q), form_of("k", k), form_of("v", v)
        if sequences is None:
            return _uniform_problem(*forms)
        if not isinstance(sequences, Sequences):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(
                f"sequences must be Sequences, got {type(sequences).__name__}; see "
                "Sequences.packed_from, left_padded and paged"
            )
        check_forms(*forms, *_layouts(sequences))
        kv_heads = k.shape[1 if sequences.page_table is None else 2]
        check_heads(q.shape[1], kv_heads)
        _check_extent(sequences, q, k)
        facts = sequences, q.shape[1], kv_heads, q.shape[-1], q.dtype, q.device
        return Problem(*facts, v_head_dim=_v_head_dim(k.shape, v.shape))

    @functools.cached_property
    def routes(self) -> dict[Hashable, Any]:
        """Answers of the router, by its question: later calls of the same form ask again."""
        return {}

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def in_one_width(self) -> Problem:
        """The problem of the tensors that `in_one_width` makes of these."""
        return replace(self, head_dim=max(self.head_dim, self.v_head_dim or 0), v_head_dim=None)

    def scale(self, scale: float | None) -> float:
        """The factor on q.k: the one given, or `D ** -0.5`.

        Raises:
            InvalidInput: the factor is not a positive finite number.
        """
        if scale is None:
            return self.head_dim**-0.5
        x = plain(scale)
        if isinstance(x, bool) or not isinstance(x, int | float) or not 0 < x <= _MOST:
            raise InvalidInput(f"scale must be a positive finite number, got {scale!r}")
        return float(x)

    def __str__(self) -> str:
        """One line with every fact, for messages."""
        s = self.sequences
        pages = f" in pages of {s.page_size}" if s.page_size else ""
        dims = f"{self.head_dim}/{self.v_head_dim}" if self.v_head_dim else f"{self.head_dim}"
        return (
            f"N={len(s.table)} H={self.num_heads}/{self.num_kv_heads} Sq<={s.max_q_len} "
            f"Skv<={s.max_kv_len} D={dims} {str(self.dtype).removeprefix('torch.')} "
            f"on {self.device}{pages}"
        )


def as_batched(x: Tensor, problem: Problem) -> Tensor:
    """The `[B, H, S, D]` view of a tensor of the problem.

    Packed tensors become B=1; of a paged cache each page is a batch row: `[P, Hkv, page_size, D]`.
    """
    if not problem.sequences.packed:
        return x
    return x.transpose(0, 1).unsqueeze(0) if x.dim() == 3 else x.transpose(1, 2)


def in_one_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors with zeros up to the largest of their head dims.

    No score changes (but the default scale, which is that of q as it was), nor the first values of
    out; those beyond v's own are zeros.
    """
    width = max(q.shape[-1], v.shape[-1])
    q, k, v = (pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    return q, k, v


def part_of(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, first: int, stop: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of `sequences.part(first, stop)`.

    Args:
        q: `[B, H, Sq, D]` or packed `[T, H, D]`.
        k: `[B, Hkv, Skv, D]`, packed or paged.
        v: like k.
        sequences: where they lie.
        first: first sequence of the part.
        stop: the one after its last.

    Returns:
        Views of q, k and v: the tensors whole where `sequences.cut` is None; a paged cache always.

    Raises:
        InvalidInput: no such sequences, or a padded batch without parts.
    """
    cut = sequences.cut(first, stop)
    if cut is None:
        return q, k, v
    return q[cut[0]], k[cut[1]], v[cut[1]]


def rows_of(x: Tensor, sequences: Sequences, first: int, stop: int) -> Tensor:
    """The view of an output that takes the result of a part.

    Where `sequences.cut` is None that is the whole output, and a result of the part holds zeros
    (lse: -inf) in the rows of other sequences: do not copy it over those.

    Args:
        x: out, like q with the head dim of v, or lse `[B, H, Sq]`, packed `[H, T]`.
        sequences: where they lie.
        first: first sequence of the part.
        stop: the one after its last.

    Raises:
        InvalidInput: no such sequences, or a padded batch without parts.
    """
    cut = sequences.cut(first, stop)
    if cut is None:
        return x
    return x[:, cut[0]] if sequences.packed and x.dim() == 2 else x[cut[0]]


def _layouts(sequences: Sequences | None) -> tuple[str, str]:
    """The shapes of q, and of k and v, that are accepted."""
    if sequences is None or not sequences.packed:
        return "[B, H, S, D]", "[B, H, S, D]"
    return "[T, H, D]", "[T, H, D]" if sequences.page_table is None else "[P, page_size, Hkv, D]"


@lasting(256)
def _uniform_problem(q: Form, k: Form, v: Form) -> Problem:
    """The problem of tensors of these forms, each batch row one full sequence; checked once."""
    check_forms(q, k, v, *_layouts(None))
    (batch, num_heads, q_len, dim), _, dtype, device = q
    _, kv_heads, kv_len, _ = k[0]
    check_heads(num_heads, kv_heads)
    check_lengths(q_len, kv_len, "the batch")
    rows = tuple(SequenceRow(b, 0, q_len, 0, kv_len) for b in range(batch))
    table = torch.tensor(rows, dtype=torch.int32, device=device)
    sequences = Sequences(table, q_len, kv_len, uniform=True, host_rows=rows)
    width = _v_head_dim(k[0], v[0])
    return Problem(sequences, num_heads, kv_heads, dim, dtype, device, width)


def _v_head_dim(k: torch.Size, v: torch.Size) -> int | None:
    return None if k[-1] == v[-1] else v[-1]


def _check_extent(sequences: Sequences, q: Tensor, k: Tensor) -> None:
    if sequences.table.device != q.device:
        raise InvalidInput(f"sequences lie on {sequences.table.device} and q on {q.device}")
    if not sequences.packed and len(sequences.table) < len(q):
        raise InvalidInput(
            f"{len(sequences.table)} sequence(s) do not cover a batch of {len(q)}; "
            "name at least one per batch row"
        )
    token_dim = 0 if sequences.packed else 2
    q_size, kv_size = q.shape[token_dim], k.shape[token_dim]
    if sequences.page_table is not None:
        check_pages(k, sequences.page_table, sequences.page_size, sequences.table[:, 4])
        kv_size = sequences.page_table.shape[1] * sequences.page_size
    for name, size, length in (
        ("q", q_size, sequences.max_q_len), ("k", kv_size, sequences.max_kv_len)
    ):  # fmt: skip
        if length > size:
            raise InvalidInput(f"a sequence has {length} tokens and {name} only {size}")
    if sequences.host_rows is None and q.device.type != "cpu":
        return  # the ends are only known on the device; the kernels bound their reads
    batch, q_end, kv_end = sequences.ends
    if q_end > q_size or kv_end > kv_size:
        raise InvalidInput(
            f"sequences end at query {q_end} and key {kv_end}; the tensors hold "
            f"{q_size} and {kv_size}"
        )
    if not sequences.packed and batch > q.shape[0]:
        raise InvalidInput(f"sequences name batch row {batch - 1} of {q.shape[0]}")
