"""What was given: tensors, and where each sequence's queries and keys lie in them.

Legend: B batch, H query heads, Hkv key/value heads, G = H / Hkv, D head dim, Sq queries, Skv keys,
N sequences, T tokens of a packed batch, P pages of a paged cache. Queries are the last Sq positions
of their sequence (bottom-right causal), so `offset = Skv - Sq` keys came before the call: a cached
prefix.
"""

from __future__ import annotations

import functools
import itertools
import sys
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config.checks import as_length, plain
from ..errors import InvalidInput
from .forms import Form, check_forms, check_heads, form_of
from .modes import lasting
from .pages import check_page_table, check_pages, gather_pages


class SequenceRow(NamedTuple):
    """Where one sequence lies: a row of `Sequences.table`, on the host and in kernels."""

    batch: int
    q_start: int
    q_len: int
    kv_start: int
    kv_len: int


LARGEST = 2**31 - 1
"""Largest position: they are kept as int32."""

_MOST = sys.float_info.max
"""Largest factor on q.k; integers may be larger."""

_INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Sequences:
    """Where each sequence lies: row n of `table` is (batch, q_start, q_len, kv_start, kv_len).

    Attributes:
        table: int32 `[N, 5]`, on the device of the tensors.
        max_q_len: bound of q_len, known on the host.
        max_kv_len: bound of kv_len, known on the host.
        packed: tensors are `[T, H, D]` rather than `[B, H, S, D]`.
        uniform: every batch row is one sequence that fills the tensors.
        page_table: int32 `[N, max_pages]`, the page of `k` and `v` `[P, page_size, Hkv, D]` that
            holds each `page_size` keys of a sequence; None: keys lie one after another.
        page_size: keys per page; 0 without pages.
        host_rows: the table on the host; None: `rows` waits for the device.
        total_q_len: queries of a packed batch where q and k each hold one sequence after another,
            without gaps; None: they lie in another way.
        totals: int32 `[2, N + 1]`, for such a batch the running totals of queries and of keys.
    """

    table: Tensor
    max_q_len: int
    max_kv_len: int
    packed: bool = False
    uniform: bool = False
    page_table: Tensor | None = None
    page_size: int = 0
    host_rows: tuple[SequenceRow, ...] | None = field(default=None, compare=False, repr=False)
    total_q_len: int | None = None
    totals: Tensor | None = None

    @classmethod
    def packed_from(cls, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None = None) -> Sequences:
        """Sequences packed one after another in `[T, H, D]` tensors.

        Args:
            cu_seqlens_q: int32 `[N + 1]`, running totals of query counts, from 0 to Tq.
            cu_seqlens_k: int32 `[N + 1]`, the same of key counts; None: as the queries.

        Returns:
            The sequences. Reading the bounds waits for the device once.

        Raises:
            InvalidInput: totals that do not start at 0 or do not grow, an empty sequence, or more
                queries than keys.
        """
        cu_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
        q_ends, kv_ends = _totals("cu_seqlens_q", cu_seqlens_q), _totals("cu_seqlens_k", cu_k)
        if len(q_ends) != len(kv_ends):
            raise InvalidInput(
                f"cu_seqlens_q names {len(q_ends) - 1} sequences and cu_seqlens_k "
                f"{len(kv_ends) - 1}; both must name the same"
            )
        spans = list(zip(q_ends, q_ends[1:], kv_ends, kv_ends[1:], strict=False))
        rows = [SequenceRow(0, q0, q1 - q0, k0, k1 - k0) for q0, q1, k0, k1 in spans]
        sequences = cls._from_rows(rows, cu_seqlens_q.device, packed=True)
        totals = torch.tensor([q_ends, kv_ends], dtype=torch.int32, device=cu_seqlens_q.device)
        return replace(sequences, total_q_len=q_ends[-1], totals=totals)

    @classmethod
    def left_padded(cls, kv_lens: Tensor, q_len: int, kv_len: int) -> Sequences:
        """Sequences of a `[B, H, S, D]` batch that are padded on the left.

        Args:
            kv_lens: int `[B]`, keys of each sequence; its queries are the last
                `min(q_len, kv_lens[b])` rows. Rows of padding get zeros and an lse of -inf.
            q_len: Sq of the tensors.
            kv_len: Skv of the tensors.

        Returns:
            The sequences. Reading the lengths waits for the device once.

        Raises:
            InvalidInput: an empty sequence, or one longer than the tensors.
        """
        _check_integers("kv_lens", kv_lens, 1)
        q_len, kv_len = (as_length(*x) for x in (("q_len", q_len), ("kv_len", kv_len)))
        rows: list[SequenceRow] = []
        for b, n in enumerate(int(x) for x in kv_lens.tolist()):
            if not 0 < n <= kv_len:
                raise InvalidInput(
                    f"sequence {b} has {n} keys; accepted: 1 to {kv_len}, the Skv of the batch"
                )
            queries = min(q_len, n)
            rows.append(SequenceRow(b, q_len - queries, queries, kv_len - n, n))
        return cls._from_rows(rows, kv_lens.device, packed=False)

    @classmethod
    def paged(
        cls, cu_seqlens_q: Tensor, kv_lens: Tensor, page_table: Tensor, page_size: int
    ) -> Sequences:
        """Queries packed in a `[T, H, D]` tensor, keys and values in a paged cache.

        Key j of sequence n is `k[page_table[n, j // page_size], j % page_size]`, and so for `v`;
        both are `[P, page_size, Hkv, D]`, of any strides with the last dimension contiguous.

        Args:
            cu_seqlens_q: int32 `[N + 1]`, running totals of query counts, from 0 to Tq.
            kv_lens: int `[N]`, keys of each sequence, those of its queries included.
            page_table: int32 `[N, max_pages]`, on the device of the tensors. Entries past a
                sequence's last key are never read; those before it must name pages of `k`.
            page_size: keys per page.

        Returns:
            The sequences. Nothing waits for the device if totals and lengths lie on the host.

        Raises:
            InvalidInput: totals that do not start at 0 or do not grow, an empty sequence, more
                queries than keys, or a page table that is too small or no page table.
        """
        ends = _totals("cu_seqlens_q", cu_seqlens_q)
        _check_integers("kv_lens", kv_lens, 1)
        lengths = [int(x) for x in kv_lens.tolist()]
        if len(lengths) != len(ends) - 1:
            raise InvalidInput(
                f"cu_seqlens_q names {len(ends) - 1} sequences and kv_lens {len(lengths)}; "
                "both must name the same"
            )
        page_size = as_length("page_size", page_size)
        check_page_table(page_table, page_size, lengths)
        spans = zip(ends, ends[1:], lengths, strict=False)
        rows = [SequenceRow(0, start, stop - start, 0, length) for start, stop, length in spans]
        laid_out = cls._from_rows(rows, page_table.device, packed=True)
        return replace(laid_out, page_table=page_table, page_size=page_size)

    @classmethod
    def _from_rows(
        cls, rows: list[SequenceRow], device: torch.device, *, packed: bool
    ) -> Sequences:
        for n, (_, q_start, q_len, kv_start, kv_len) in enumerate(rows):
            _check_lengths(q_len, kv_len, f"sequence {n}")
            if max(q_start + q_len, kv_start + kv_len) > LARGEST:
                raise InvalidInput(
                    f"sequence {n} ends at query {q_start + q_len} and key {kv_start + kv_len}; "
                    f"accepted: up to {LARGEST}, since positions are int32. Make several calls"
                )
        table = torch.tensor(rows, dtype=torch.int32, device=device)
        bounds = max(r.q_len for r in rows), max(r.kv_len for r in rows)
        return cls(table, *bounds, packed=packed, host_rows=tuple(rows))

    @functools.cached_property
    def ends(self) -> tuple[int, int, int]:
        """What the rows reach to: batch rows, queries and keys (waits where `rows` does)."""
        rows = self.rows()
        return (
            max(row.batch for row in rows) + 1,
            max(row.q_start + row.q_len for row in rows),
            max(row.kv_start + row.kv_len for row in rows),
        )

    def rows(self) -> list[SequenceRow]:
        """The table as Python integers (waits for the device where the host has no copy)."""
        if self.host_rows is not None:
            return list(self.host_rows)
        return [SequenceRow(*row) for row in self.table.tolist()]


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


def keys_of(x: Tensor, sequences: Sequences, n: int) -> Tensor:
    """The keys, or the values, of one sequence in the order of their positions.

    Args:
        x: `[B, ..., S, D]`, the batched view of k or v, or some of its heads.
        sequences: where they lie.
        n: sequence.

    Returns:
        `[..., Skv, D]`: a view, or a copy out of the pages of a paged cache.
    """
    row = sequences.rows()[n]
    if sequences.page_table is not None:
        return gather_pages(x, sequences.page_table[n], row.kv_len)
    return x[row.batch, ..., row.kv_start : row.kv_start + row.kv_len, :]


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
    _check_lengths(q_len, kv_len, "the batch")
    rows = tuple(SequenceRow(b, 0, q_len, 0, kv_len) for b in range(batch))
    table = torch.tensor(rows, dtype=torch.int32, device=device)
    sequences = Sequences(table, q_len, kv_len, uniform=True, host_rows=rows)
    width = _v_head_dim(k[0], v[0])
    return Problem(sequences, num_heads, kv_heads, dim, dtype, device, width)


def _v_head_dim(k: torch.Size, v: torch.Size) -> int | None:
    return None if k[-1] == v[-1] else v[-1]


def _check_lengths(q_len: int, kv_len: int, whose: str) -> None:
    if q_len < 1 or kv_len < 1:
        raise InvalidInput(f"{whose} is empty: Sq={q_len}, Skv={kv_len}; both must be >= 1")
    if kv_len > LARGEST:
        raise InvalidInput(f"{whose} has Skv={kv_len}; accepted: up to {LARGEST}")
    if q_len > kv_len:
        raise InvalidInput(
            f"{whose} has Sq={q_len} > Skv={kv_len}; queries are the last Sq of Skv positions"
        )


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


def _check_integers(name: str, x: Tensor, least: int) -> None:
    given = type(x).__name__
    if isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        read = x.layout is torch.strided and not x.is_nested and not x.is_meta
        if read and x.dim() == 1 and len(x) >= least and x.dtype in _INTEGERS:
            return
        shape = "" if x.is_nested else tuple(x.shape)
        given = f"{x.dtype} {shape} ({x.layout}, {x.device})"
    raise InvalidInput(
        f"{name} must be a 1-D tensor of at least {least} int32 or int64 values, got {given}"
    )


def _totals(name: str, cu_seqlens: Tensor) -> list[int]:
    _check_integers(name, cu_seqlens, 2)
    totals = [int(x) for x in cu_seqlens.tolist()]
    if totals[0] != 0 or any(a >= b for a, b in itertools.pairwise(totals)):
        raise InvalidInput(f"{name} must start at 0 and grow at every step, got {totals[:8]}")
    return totals
