"""Where each sequence's queries and keys lie in the tensors of a batch.

N sequences, T tokens of a packed batch, P pages of a paged cache. Queries are the last Sq positions
of their sequence (bottom-right causal), so `offset = Skv - Sq` keys came before the call: a cached
prefix.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..config.checks import as_length
from ..errors import InvalidInput
from .pages import check_page_table, gather_pages


class SequenceRow(NamedTuple):
    """Where one sequence lies: a row of `Sequences.table`, on the host and in kernels."""

    batch: int
    q_start: int
    q_len: int
    kv_start: int
    kv_len: int


LAST_POSITION = 2**31 - 1
"""Largest position: they are kept as int32."""

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
            check_lengths(q_len, kv_len, f"sequence {n}")
            if max(q_start + q_len, kv_start + kv_len) > LAST_POSITION:
                raise InvalidInput(
                    f"sequence {n} ends at query {q_start + q_len} and key {kv_start + kv_len}; "
                    f"accepted: up to {LAST_POSITION}, since positions are int32. "
                    "Make several calls"
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
        return [tuple(row) for row in self.table.tolist()]  # pyright: ignore[reportReturnType]

    def known_rows(self) -> tuple[SequenceRow, ...] | None:
        """The rows, or None where reading them would wait for a device."""
        if self.host_rows is not None or self.table.device.type != "cpu":
            return self.host_rows
        return tuple(self.rows())

    def cut(self, first: int, stop: int) -> tuple[slice, slice] | None:
        """The slices of q and of k that hold sequences `first` to `stop - 1` as a batch of theirs.

        Slices of batch rows, or of the tokens of a packed batch; of a paged cache every page. None
        for a packed batch whose rows are not known, or with gaps between those queries: its
        sequences only become a batch of their own in the whole tensors. Batch rows may be shared with
        other sequences: add a result to such a view, and never copy it. Nothing waits for a device.

        Raises:
            InvalidInput: no such sequences, or a padded batch without parts.
        """
        count = len(self.table)
        if not 0 <= first < stop <= count:
            raise InvalidInput(
                f"sequences {first} to {stop}; accepted: 0 <= first < stop <= {count}, "
                "the sequences of the batch"
            )
        if self.uniform:
            return slice(first, stop), slice(first, stop)
        rows = self.known_rows()
        if not self.packed:
            if rows is None:
                raise InvalidInput(
                    "a padded batch has parts where its rows are known on the host; make it with "
                    "Sequences.left_padded"
                )
            batch = [row.batch for row in rows[first:stop]]
            some = slice(min(batch), max(batch) + 1)
            return some, some
        if rows is None:
            return None
        rows = rows[first:stop]
        if any(a.q_start + a.q_len != b.q_start for a, b in itertools.pairwise(rows)):
            return None
        queries = slice(rows[0].q_start, rows[-1].q_start + rows[-1].q_len)
        if self.page_table is not None:
            return queries, slice(None)
        return queries, slice(
            min(row.kv_start for row in rows), max(row.kv_start + row.kv_len for row in rows)
        )

    def part(self, first: int, stop: int) -> Sequences:
        """Sequences `first` to `stop - 1` as a batch of their own, of the tensors of `part_of`.

        Nothing waits for a device.

        Raises:
            InvalidInput: no such sequences, or a padded batch without parts.
        """
        cut = self.cut(first, stop)
        origin = _origin(cut, packed=self.packed)
        table = self.table[first:stop].clone()
        for column, start in enumerate(origin):
            if start:
                table[:, column] -= start
        rows, bounds = self.known_rows(), (self.max_q_len, self.max_kv_len)
        if rows is not None:
            rows = tuple(_moved(row, origin) for row in rows[first:stop])
            bounds = max(row.q_len for row in rows), max(row.kv_len for row in rows)
        part = replace(
            self, table=table, max_q_len=bounds[0], max_kv_len=bounds[1], host_rows=rows,
            page_table=None if self.page_table is None else self.page_table[first:stop],
            total_q_len=None, totals=None,
        )  # fmt: skip
        if cut is None or self.totals is None:
            return part
        totals = self.totals[:, first : stop + 1] - self.totals[:, first : first + 1]
        return replace(part, total_q_len=cut[0].stop - cut[0].start, totals=totals)


def keys_of(x: Tensor, sequences: Sequences, n: int) -> Tensor:
    """The keys, or the values, of one sequence in the order of their positions.

    Args:
        x: `[B, ..., S, D]`, the batched view of k or v, or some of its heads.
        sequences: where they lie.
        n: sequence.

    Returns:
        `[..., Skv, D]`: a view, or a copy out of the pages of a paged cache.
    """
    b, _, _, start, length = sequences.rows()[n]
    if sequences.page_table is not None:
        return gather_pages(x, sequences.page_table[n], length)
    return x[b, ..., start : start + length, :]


def _origin(cut: tuple[slice, slice] | None, *, packed: bool) -> SequenceRow:
    """The numbers of a row where the slices of a cut begin."""
    if cut is None:
        return SequenceRow(0, 0, 0, 0, 0)
    queries, keys = cut
    if packed:
        return SequenceRow(0, queries.start, 0, keys.start or 0, 0)
    return SequenceRow(queries.start, 0, 0, 0, 0)


def _moved(row: SequenceRow, origin: SequenceRow) -> SequenceRow:
    """A row counted from another origin."""
    return SequenceRow(*(a - b for a, b in zip(row, origin, strict=True)))


def check_lengths(q_len: int, kv_len: int, whose: str) -> None:
    """Check that a sequence has queries, and at most as many as keys.

    Raises:
        InvalidInput: it is empty, too long, or has more queries than keys.
    """
    if q_len < 1 or kv_len < 1:
        raise InvalidInput(f"{whose} is empty: Sq={q_len}, Skv={kv_len}; both must be >= 1")
    if kv_len > LAST_POSITION:
        raise InvalidInput(f"{whose} has Skv={kv_len}; accepted: up to {LAST_POSITION}")
    if q_len > kv_len:
        raise InvalidInput(
            f"{whose} has Sq={q_len} > Skv={kv_len}; queries are the last Sq of Skv positions"
        )


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
