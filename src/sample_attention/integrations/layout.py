"""Where the sequences of a batch lie, read from what a model passes: masks, totals, positions.

A row is (batch, q_start, q_len, kv_start, kv_len), as in `Sequences`. Reading one waits for the
device; what is read from a tensor is remembered with it, so that a forward pass waits once, not
once per layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import InvalidInput
from ..problem import SequenceRow, Sequences
from ..problem.modes import lasting

Rows: TypeAlias = tuple[SequenceRow, ...]


@dataclass(frozen=True)
class Layout:
    """What a mask says.

    Attributes:
        width: keys in use; the rest of a static cache is not yet filled.
        rows: where the sequences lie, rows of padding left out; None: each batch row is one
            sequence that fills it.
        holes: bool `[B, width]`, the tokens of a mask whose ones are not contiguous, or None.
        window: the sliding window that the mask was made with, or None.
        packed: the rows are packed sequences rather than what padding leaves.
        made_for: keys that the mask was made for, or None where nobody said.
        refusal: why attention under the mask cannot be computed, or None.
    """

    width: int
    rows: Rows | None = None
    holes: Tensor | None = None
    window: int | None = None
    packed: bool = False
    made_for: int | None = None
    refusal: str | None = None


def layout_of_mask(mask: Tensor, q_len: int, window: int | None = None) -> Layout:
    """Read a padding mask: bool `[B, W]`, True for tokens, for the first W keys of the batch.

    Queries are the last `q_len` of the W positions. Padding may lie left, right or on both sides;
    ones with a gap between them are returned as `holes`.
    """
    width = mask.shape[1]
    ones = mask.int()
    first, after = ones.argmax(1), width - ones.flip(1).argmax(1)
    rows: list[SequenceRow] = []
    whole = True
    for b, (n, lo, hi) in enumerate(torch.stack([ones.sum(1), first, after], 1).tolist()):
        whole = whole and n == width
        if n == 0:
            continue
        if hi - lo != n:
            return Layout(width, None, mask, window)
        q_lo = max(lo, width - q_len)
        if q_lo < hi:
            rows.append(SequenceRow(b, q_lo - (width - q_len), hi - q_lo, lo, n))
    return Layout(width, None if whole else tuple(rows), None, window)


def layout_of_packed(ids: Tensor, window: int | None = None) -> Layout:
    """Read int32 `[B, S]` numbers that change where another sequence begins."""
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return Layout(ids.shape[1], _rows_from_starts(starts), None, window, packed=True)


def in_chunks(layout: Layout, q_len: int, chunk: int, starts: Sequence[int]) -> Layout:
    """Cut each sequence where a chunk of its positions begins; chunks do not see each other.

    Args:
        layout: of a padding mask; where no sequence reaches beyond its first chunk, returned as is.
        q_len: queries of a batch row, the last of its keys.
        chunk: positions in a chunk.
        starts: for each batch row the key at which position 0 lies; negative: before the first.
    """
    if all(layout.width - start <= chunk for start in starts):
        return layout
    if layout.holes is not None or layout.packed:
        return replace(layout, refusal="joins chunks of attention to gaps or packed sequences")
    whole = tuple(SequenceRow(b, 0, q_len, 0, layout.width) for b in range(len(starts)))
    rows: list[SequenceRow] = []
    for b, q_start, queries, kv_start, keys in whole if layout.rows is None else layout.rows:
        end, first = kv_start + keys, kv_start + keys - queries
        cuts = range(kv_start + chunk - (kv_start - starts[b]) % chunk, end, chunk)
        for lo, hi in itertools.pairwise([kv_start, *cuts, end]):
            if hi > first:
                seen = max(lo, first)
                rows.append(SequenceRow(b, q_start + seen - first, hi - seen, lo, hi - lo))
    return replace(layout, rows=tuple(rows))


def rows_of_positions(positions: Tensor, batch: int) -> Rows | None:
    """Sequences packed in `[1 or B, S]` position ids; None where each batch row is one.

    A sequence begins where the position falls back to 0.

    Raises:
        InvalidInput: positions that jump elsewhere: neither one sequence nor packed ones.
    """
    restarts = positions[:, 1:] != positions[:, :-1] + 1
    if not restarts.any():
        return None
    if (restarts & (positions[:, 1:] != 0)).any():
        raise InvalidInput("they jump to a position other than 0")
    starts = torch.nn.functional.pad(restarts, (1, 0), value=True)
    return _rows_from_starts(starts.expand(batch, -1))


def rows_of_totals(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> Rows:
    """Packed sequences of one batch row from running totals; those without queries are left out.

    Raises:
        InvalidInput: the totals differ in number, or a sequence has more queries than keys.
    """
    q_ends, kv_ends = ([int(x) for x in cu.tolist()] for cu in (cu_seqlens_q, cu_seqlens_k))
    if len(q_ends) != len(kv_ends):
        raise InvalidInput(f"there are {len(q_ends)} totals of queries and {len(kv_ends)} of keys")
    rows: list[SequenceRow] = []
    spans = zip(q_ends, q_ends[1:], kv_ends, kv_ends[1:], strict=False)
    for q_start, q_end, kv_start, kv_end in spans:
        if q_end - q_start > kv_end - kv_start:
            raise InvalidInput(f"{q_end - q_start} queries on {kv_end - kv_start} keys")
        if q_end > q_start:
            rows.append(SequenceRow(0, q_start, q_end - q_start, kv_start, kv_end - kv_start))
    return tuple(rows)


def rows_of_holes(mask: Tensor, q_len: int) -> Rows:
    """Rows of the tokens of `mask`, `[B, W]`, gathered one after another; all in batch row 0."""
    counts = torch.stack([mask[:, mask.shape[1] - q_len :].sum(1), mask.sum(1)], 1).tolist()
    rows: list[SequenceRow] = []
    q_start = kv_start = 0
    for queries, keys in counts:
        if queries:
            rows.append(SequenceRow(0, q_start, queries, kv_start, keys))
        q_start, kv_start = q_start + queries, kv_start + keys
    return tuple(rows)


@lasting(64)
def sequences_of(rows: Rows, device: torch.device) -> Sequences:
    """The rows as a table on the device; the same rows give the same object."""
    table = torch.tensor(rows, dtype=torch.int32, device=device)
    bounds = max(r.q_len for r in rows), max(r.kv_len for r in rows)
    return Sequences(table, *bounds, host_rows=rows)


_BESIDE = "_sample_attention_layout"
"""Attribute of a mask that holds its layout; what an operator makes of the mask has none."""

_rows: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remember_layout(mask: Tensor, layout: Layout) -> Tensor:
    """Keep the layout for as long as the mask lives; the mask must not be written to."""
    setattr(mask, _BESIDE, layout)
    return mask


def recall_layout(mask: Tensor) -> Layout | None:
    """What `remember_layout` kept for this very tensor."""
    return getattr(mask, _BESIDE, None)


def remembered_rows(
    read: Callable[[], Rows | None], *tensors: Tensor, layer: int | None
) -> Rows | None:
    """`read()`, which waits for the device, remembered with the tensors that it reads.

    Until one of them is written to; tensors of inference mode do not count that, so there what an
    earlier layer read holds for the later ones: the layers of one pass are called in order.

    Args:
        read: reads the tensors.
        tensors: what it reads.
        layer: index of the layer that asks; None: unknown.
    """
    first, others = tensors[0], tuple(x for x in tensors if x is not tensors[0])
    inference = any(map(Tensor.is_inference, tensors))
    if inference and layer is None:
        return read()
    versions = () if inference else tuple(map(_version, tensors))
    known = _rows.get(first)
    same = known is not None and [*map(id, known.others)] == [*map(id, others)]
    if known is None or not same or known.versions != versions or known.ends_before(layer):
        known = _rows[first] = _Reading(versions, others, read())
    known.layer = layer if inference else None
    return known.rows


_version: Callable[[Tensor], int] = attrgetter("_version")
"""How often a tensor was written to."""


@dataclass
class _Reading:
    """What was read from tensors; `others` are held, so that their identity stays theirs."""

    versions: tuple[int, ...]
    others: tuple[Tensor, ...]
    rows: Rows | None
    layer: int | None = None

    def ends_before(self, layer: int | None) -> bool:
        """Whether a layer belongs to another pass than the one that was read in."""
        return self.layer is not None and (layer is None or layer <= self.layer)


def _rows_from_starts(starts: Tensor) -> Rows:
    """Rows of packed sequences from bool `[B, S]`, True at the first token of each."""
    length = starts.shape[1]
    found: list[list[int]] = starts.nonzero().tolist()
    ends = [s if s else length for _, s in found[1:]] + [length]
    return tuple(
        SequenceRow(b, start, end - start, start, end - start)
        for (b, start), end in zip(found, ends, strict=True)
    )
