"""Which lists a program works on: those of segments side by side, of heads that share keys.

The regular sampled keys of a segment are every `step`-th of the columns that it can list, with the
smallest power of two at which they are no more than SAMPLED_KEYS: `step` is 2 to the `octaves`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class ListTile(NamedTuple):
    """Lists that one program makes, by number `i`.

    Attributes:
        head: query head.
        segment: counted over the call.
        place: among the lists that are made together, `[N, H, G']`.
        limit: columns that it can hold; 0 where it is dense or there is none.
    """

    head: Any
    segment: Any
    place: Any
    limit: Any


@triton.jit
def open_limits(Limits, Dense, n, head, segment, inside, num_segments):
    """Columns that each of a tile's segments can list; 0 where it is dense or not inside."""
    flags = tl.load(Dense + head * num_segments + segment, mask=inside, other=1)
    return tl.load(Limits + n * num_segments + segment, mask=inside & (flags == 0), other=0)


@triton.jit
def list_tile(
    Limits, Dense, i, start, first_segment, last_segment, num_segments,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """`ListTile` of lists `i` of the segments from `start` on, HEADS heads that share keys each."""
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    n, part = tl.program_id(2), tl.program_id(1) % PARTS
    own = tl.minimum(part * HEADS + i % HEADS, GROUP - 1)
    head = tl.program_id(1) // PARTS * GROUP + own
    segment = start + i // HEADS
    row = (n * NUM_HEADS + head).to(tl.int64)
    inside = (part * HEADS + i % HEADS < GROUP) & (segment < last_segment)
    limit = open_limits(Limits, Dense, n, row, segment, inside, num_segments)
    place = row * (last_segment - first_segment) + segment - first_segment
    return ListTile(head, segment, place, limit)


@triton.jit
def sampled_step(limit, SAMPLED_KEYS: tl.constexpr):
    """Distance of the regular sampled keys of a segment."""
    step = 1
    while step * SAMPLED_KEYS < limit:
        step *= 2
    return step


@triton.jit
def sampled_octaves(limits, largest, SAMPLED_KEYS: tl.constexpr):
    """Log2 of `sampled_step` for many limits, none above `largest`."""
    octaves = tl.zeros(limits.shape, tl.int32)
    step = 1
    while step * SAMPLED_KEYS < largest:
        octaves += (step * SAMPLED_KEYS < limits).to(tl.int32)
        step *= 2
    return octaves
