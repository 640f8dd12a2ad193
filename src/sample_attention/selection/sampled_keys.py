"""Which columns exact rows score when mean and spread rank: some at even distances, all heavy ones.

Even distances are powers of two tied to absolute positions, so that a longer prompt probes some of
the columns that a shorter one does, and the segments of a stretch share their probes.
"""

from __future__ import annotations

from ..config import HIGHEST_RANK, LOWEST_RANK

NUM_RANKS = HIGHEST_RANK - LOWEST_RANK + 1
"""Classes of ranks relative to the first heavy one; a class fits in a byte."""


def probe_step(columns: int, probes: int | None) -> int:
    """Distance of the probes among that many columns: key j is one if (j + 1) % distance == 0.

    It is the smallest power of two that leaves at most `probes`; None: 1, every column is one.
    """
    if probes is None:
        return 1
    return 1 << max(0, -(-columns // probes) - 1).bit_length()
