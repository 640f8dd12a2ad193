"""Which columns sampled rows score where moments rank: some at even distances, all heavy ones.

Even distances are powers of two tied to absolute positions, so that a longer prompt samples some
of the columns that a shorter one does, and neighbouring segments share their sampled keys.
"""

from __future__ import annotations

from ..config import HIGHEST_RANK, LOWEST_RANK

NUM_RANKS = HIGHEST_RANK - LOWEST_RANK + 1
"""Classes of ranks relative to the first heavy one; a class fits in a byte."""


def key_step(columns: int, sampled_keys: int | None) -> int:
    """Distance of the sampled keys among that many columns: where (j + 1) % distance is 0.

    The smallest power of two that leaves at most `sampled_keys`; None: 1, every column is one.
    """
    if sampled_keys is None:
        return 1
    return 1 << max(0, -(-columns // sampled_keys) - 1).bit_length()
