"""Inputs of tests: tensors with the structure of real heads, paged caches, plans by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..plan import StripePlan, segment_starts
from ..problem import Sequences

REGION = 256
"""Consecutive rows of `make_qkv` that look for the same columns."""


def make_qkv(
    q_len: int, kv_len: int | None = None, *, batch: int = 1, num_heads: int = 2,
    num_kv_heads: int | None = None, head_dim: int = 32, dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Inputs whose attention has the structure of real heads, in another mixture for each head.

    A score is the sum of: sinks (the first four keys), columns (one key in 32 is strong for the
    rows of one region of 256 positions and weak elsewhere), local decay and a slash (both are
    functions of the distance, by rotation as in RoPE), and noise.

    Args:
        q_len: queries, the last of the `kv_len` positions.
        kv_len: keys; None: as many as queries.
        batch: sequences; each has its own content.
        num_heads: query heads.
        num_kv_heads: key/value heads; None: as many as query heads.
        head_dim: D; the structure is clear from 16 up.
        dtype: of the result; the content is the same up to rounding.
        seed: the same seed gives the same content.

    Returns:
        q `[B, H, Sq, D]`, k and v `[B, Hkv, Skv, D]`.
    """
    kv_len = q_len if kv_len is None else kv_len
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64, device="cpu")

    def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=dtype, device="cpu")

    def gains(low: float, high: float, heads: int) -> Tensor:
        return low + (high - low) * uniform(batch, heads, 1, 1, dtype=torch.float64)

    def per_query_head(x: Tensor) -> Tensor:
        return x.repeat_interleave(num_heads // kv_heads, 1)

    position = torch.arange(kv_len, device="cpu")
    unit = head_dim**-0.5
    sink, local = (normal(batch, kv_heads, 1, head_dim) * unit for _ in range(2))
    regions = normal(batch, kv_heads, kv_len // REGION + 1, head_dim) * unit
    k = normal(batch, kv_heads, kv_len, head_dim) * (unit / 2)
    k[:, :, :4] += sink
    strong = uniform(batch, kv_heads, kv_len, 1) < 1 / 32
    region = torch.randint(regions.shape[2], (kv_len,), generator=random, device="cpu")
    k += strong * regions[:, :, region]
    k += _rotate(local, position)
    at = position[kv_len - q_len :]
    slash = torch.randint(1, max(2, kv_len // 2), (1,), generator=random, device="cpu")
    q = normal(batch, num_heads, q_len, head_dim) * unit
    q += gains(4, 10, num_heads) * per_query_head(sink)
    q += gains(8, 14, num_heads) * per_query_head(regions[:, :, at // REGION])
    q += gains(1, 4, num_heads) * _rotate(per_query_head(local), at)
    q += gains(0, 4, num_heads) * _rotate(per_query_head(local), at - slash)
    v = normal(batch, kv_heads, kv_len, head_dim)
    return (q / unit).to(dtype), k.to(dtype), v.to(dtype)


def _rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs of dimensions of x `[B, H, 1, D]` by the positions, as RoPE does."""
    half = x.shape[-1] // 2
    steps = torch.linspace(0, 8, max(half, 1), dtype=torch.float64, device=x.device)
    speed = 0.5 ** steps[:half]
    angle = positions[:, None] * speed
    a, b, rest = x.expand(-1, -1, len(positions), -1).split([half, half, x.shape[-1] % 2], -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


def make_pages(
    k: Tensor, v: Tensor, sequences: Sequences, page_size: int, *, seed: int = 0
) -> tuple[Tensor, Tensor, Sequences]:
    """The same keys and values in a paged cache that punishes every read beside them.

    Pages lie in random order and K and V in turn, `[P, 2, page_size, Hkv, D]`. Slots and pages that
    no token uses hold NaN, and entries past a sequence's last page are numbers of no page.

    Args:
        k: `[T, Hkv, D]`.
        v: like k.
        sequences: packed, where they lie.
        page_size: tokens per page.
        seed: the same seed gives the same order of pages.

    Returns:
        k and v `[P, page_size, Hkv, D]`, and the sequences with their page table.
    """
    rows = sequences.rows()
    counts = [math.ceil(row[4] / page_size) for row in rows]
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(sum(counts) + 2, generator=random, device="cpu")
    cache = k.new_full((len(order), 2, page_size, *k.shape[1:]), torch.nan)
    page_table = torch.full((len(rows), max(counts) + 2), -1, dtype=torch.int32, device="cpu")
    page_table[:, -1] = torch.iinfo(torch.int32).max
    for n, (pages, (_, _, _, start, length)) in enumerate(
        zip(order.split([*counts, 2]), rows, strict=False)
    ):
        page_table[n, : counts[n]] = pages
        at = torch.arange(length, device="cpu")
        for i, x in enumerate((k, v)):
            cache[pages[at // page_size], i, at % page_size] = x[start : start + length]
    q_ends = torch.tensor([0, *(row[1] + row[2] for row in rows)], device="cpu")
    kv_lens = torch.tensor([row[4] for row in rows], device="cpu")
    paged = Sequences.paged(q_ends, kv_lens, page_table.to(k.device), page_size)
    return cache[:, 0], cache[:, 1], paged


def make_plan(
    sequences: Sequences, lists: list[list[list[list[int]]]], *, segment: int,
    window: int, window_alignment: int = 1, key_block: int = 1, dense_tail: int = 0,
) -> StripePlan:  # fmt: skip
    """A plan by hand.

    Args:
        sequences: where the sequences lie; of an unpadded batch: `Problem.of(q, k, v).sequences`.
        lists: `lists[n][h][g]` are the key blocks of sequence n, head h and segment g; `[-1]` makes
            the segment dense.
        segment: rows per segment.
        window: keys that a row keeps locally.
        window_alignment: rows that share one left edge of the window.
        key_block: keys per list entry.
        dense_tail: last rows of each sequence that attend to every key.

    Returns:
        The plan.
    """
    rows = sequences.rows()
    sizes = [len(segment_starts(kv - q, kv, segment)) for _, _, q, _, kv in rows]
    shape = (len(rows), len(lists[0]), max(sizes))
    counts = torch.zeros(shape, dtype=torch.int32, device="cpu")
    dense = torch.zeros(shape, dtype=torch.bool, device="cpu")
    joined: list[int] = []
    for n, heads in enumerate(lists):
        for h, segments in enumerate(heads):
            for g, columns in enumerate(segments):
                dense[n, h, g] = columns == [-1]
                kept = [] if columns == [-1] else sorted(set(columns))
                counts[n, h, g] = len(kept)
                joined += kept
    ends = counts.flatten().long().cumsum(0)
    device = sequences.table.device
    return StripePlan(
        indices=torch.tensor(joined, dtype=torch.int32, device=device),
        offsets=(ends - counts.flatten()).view(shape).to(device),
        counts=counts.to(device),
        dense=dense.to(device),
        sequences=sequences,
        segment=segment,
        window=torch.full((len(rows),), window, dtype=torch.int32, device=device),
        window_alignment=window_alignment,
        key_block=key_block,
        dense_tail=dense_tail,
    )
