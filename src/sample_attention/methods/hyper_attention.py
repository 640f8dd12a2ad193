"""HyperAttention: blocks of rows and keys sorted by hash, and sampled columns, below the diagonal.

Rule (causal variant): a prompt whose halves have `min_keys` or more is halved, and so are its
halves; pieces that are not halved are dense. Between the rows of a second half and the keys of its
first half, both are sorted by the hash of `projections` signs, in the order of the published code,
and cut into blocks of `block`; each block of rows keeps the block of keys of the same number, and
all rows keep `samples` keys drawn uniformly.

Different here: the published estimate weighs a sampled key by keys / samples, as it stands for the
others; a plan has no weights, so it counts once. Rows share lists (see `hashing`). Published for
whole prompts: a call with a cached prefix is refused, since the hashes of earlier rows are not
known.

Source: arXiv 2310.05869 and insuhan/hyper-attn (`lsh_num_projs` 7, `block_size` 256, `sample_size`
256, `min_seq_len` 4096).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..config.checks import check_count
from ..errors import InvalidInput
from ..plan import StripePlan
from ..problem import Problem
from .hashing import SEGMENT, directions, keys_of_segments
from .method import Heads, Method, planned

SHORTEST = 32
"""Least `min_keys`: bounds the number of pieces."""


@dataclass(frozen=True)
class HyperAttention(Method):
    """Sorted blocks and sampled columns.

    Attributes:
        projections: signs in a hash.
        block: rows and keys of a block, once sorted.
        samples: keys drawn for each pair of halves.
        min_keys: least keys of a half, 32 or more.
        seed: of the projections and samples.
    """

    projections: int = 7
    block: int = 256
    samples: int = 256
    min_keys: int = 4096
    seed: int = 0
    knob: ClassVar[str] = "min_keys, with block and samples for about as many keys"

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("projections", "block", "samples", "min_keys"):
            check_count(name, getattr(self, name), 1 if name != "min_keys" else SHORTEST)

    def select(self, q: Tensor, k: Tensor, problem: Problem, scale: float) -> StripePlan:
        """See `Selector.select`.

        Raises:
            InvalidInput: a sequence has more keys than queries.
        """
        return planned(q, k, problem, scale, (SEGMENT, 1), self._keep)

    def turned(self, dial: float, kv_len: int) -> HyperAttention:
        """Dense pieces of at most `dial` of the keys; blocks and samples of what they leave."""
        keys, halvings = dial * kv_len, 0
        while kv_len >> halvings > keys and kv_len >> (halvings + 1) >= SHORTEST:
            halvings += 1
        piece = max(kv_len >> halvings, SHORTEST)
        each = max(1, round((keys - piece / 2) / max(halvings, 1)))
        return replace(self, block=each, samples=each, min_keys=piece)

    def _keep(self, heads: Heads) -> Tensor:
        if heads.offset:
            raise InvalidInput(
                f"HyperAttention is defined for whole prompts, and {heads.offset} of the "
                f"{heads.kv_len} keys came before the call; prefill in one call"
            )
        shape = len(heads.q), -(-heads.kv_len // SEGMENT), heads.kv_len
        kept = torch.zeros(shape, dtype=torch.bool, device=heads.k.device)
        axes = directions(heads, self.projections, [self.seed] * len(heads.q))
        rows, keys = (_gray(x @ axes > 0) for x in (heads.q, heads.k))
        for lo, mid, hi in self._pieces(0, heads.kv_len):
            segments = slice(mid // SEGMENT, -(-hi // SEGMENT))
            if lo == mid:
                kept[:, segments, lo:hi] = True
                continue
            part = kept[:, segments, lo:mid]
            part |= self._sampled(heads, lo, mid)[:, None]
            row_blocks = _rank(rows[:, mid:hi]) // self.block
            key_blocks = _rank(keys[:, lo:mid]) // self.block
            part |= keys_of_segments(row_blocks, key_blocks, mid, -(-(mid - lo) // self.block))
        return kept

    def _pieces(self, lo: int, hi: int) -> list[tuple[int, int, int]]:
        """(lo, mid, hi): rows [mid, hi) against keys [lo, mid); mid = lo for a dense piece."""
        half = (hi - lo + 1) // 2
        if half < self.min_keys:  # also where only the pairs of both halves are too few to sort
            return [(lo, lo, hi)]
        mid = lo + half
        return [(lo, mid, hi), *self._pieces(lo, mid), *self._pieces(mid, hi)]

    def _sampled(self, heads: Heads, lo: int, mid: int) -> Tensor:
        """Keys of the first half that all rows of the second keep: bool `[M, mid - lo]`."""
        drawn = torch.zeros(len(heads.q), mid - lo, dtype=torch.bool, device="cpu")
        for i in range(len(drawn)):
            # lo + mid: twice the middle of the keys, which no other piece has
            seed = ((self.seed * 2**12 + heads.first + i) * 2**24 + lo + mid) % 2**63
            generator = torch.Generator().manual_seed(seed)
            size = (self.samples,)
            at = torch.randint(mid - lo, size, generator=generator, device="cpu")
            drawn[i, at] = True
        return drawn.to(heads.k.device)


def _gray(signs: Tensor) -> Tensor:
    """The number of the bits `[..., P]`, in the published order: int64 `[...]`."""
    number = (signs * 2 ** torch.arange(signs.shape[-1], device=signs.device)).sum(-1)
    return number ^ (number >> 1)


def _rank(x: Tensor) -> Tensor:
    """Where each entry of `[M, S]` would stand once sorted, equal ones in their order."""
    return x.argsort(dim=-1, stable=True).argsort(-1)
