"""What a test of attention needs: structured inputs, hand-made plans, and a computed error budget.

The error of a result is measured against `reference.attend` in fp64 on the mask of its plan. It is
allowed to be `factor` times the error that plain PyTorch makes in the same dtype, its scores and
softmax computed in fp32, plus what rounding the exact result to that dtype changes. Nothing in that
is typed in by hand.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from .. import reference
from ..plan import StripePlan, segment_starts
from ..problem import Problem, Sequences, as_batched, keys_of

REGION = 256
"""Consecutive rows of `make_qkv` that look for the same columns."""

FACTOR = 2.0
"""How many times the error of plain PyTorch a result may have, unless a test says otherwise."""


@dataclass(frozen=True)
class OracleError:
    """How far a result is from the fp64 reference.

    Attributes:
        error: largest error of `out`.
        budget: what was accepted.
    """

    error: float
    budget: float


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


def plan_masks(plan: StripePlan, n: int = 0) -> Tensor:
    """The masks of every head of sequence `n`: bool `[H, Sq, Skv]`."""
    return torch.stack([plan.to_dense(n, h) for h in range(plan.num_heads)])


def split_sequences(x: Tensor, sequences: Sequences, *, keys: bool = False) -> list[Tensor]:
    """The part `[H, S, ...]` of each sequence in a batched or packed tensor.

    Args:
        x: q, out or lse of a problem; with `keys` its k or v. Packed lse is `[H, T]`, all others
            are `[T, H, D]`; paged k and v are `[P, page_size, Hkv, D]`.
        sequences: where they lie.
        keys: cut by key positions instead of query rows.

    Returns:
        One view per sequence, or a copy out of its pages.
    """
    if keys and sequences.page_table is not None:
        pages = x.transpose(1, 2)
        return [keys_of(pages, sequences, n) for n in range(len(sequences.table))]
    if sequences.packed:
        x = (x if x.dim() == 2 else x.transpose(0, 1))[None]
    first = 3 if keys else 1
    cuts = [(row[0], row[first], row[first] + row[first + 1]) for row in sequences.rows()]
    return [x[b, :, start:stop] for b, start, stop in cuts]


def assert_matches_oracle(
    out: Tensor, lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, plan: StripePlan, *,
    scale: float | None = None, factor: float = FACTOR,
) -> None:  # fmt: skip
    """Check a result of attention over a plan against the fp64 reference.

    For the largest and for the root mean square error of `out` and of `lse`:
    error <= factor * error of plain PyTorch + rounding of the exact result.

    Args:
        out: like q, with the head dim of v.
        lse: `[B, H, Sq]`, packed `[H, T]`; None: is not checked.
        q: `[B, H, Sq, D]` or packed `[T, H, D]`.
        k: `[B, Hkv, Skv, D]`, packed or paged.
        v: like k.
        plan: what was computed.
        scale: multiplies q.k; None: `D ** -0.5`.
        factor: how many times worse than plain PyTorch is accepted.

    Raises:
        AssertionError: an error beyond the budget; a row without keys, or of padding, that is not
            zeros with an lse of -inf; another shape or dtype.
    """
    shape = (*q.shape[:-1], v.shape[-1])
    if out.shape != shape or out.dtype != q.dtype:
        raise AssertionError(
            f"out is {out.dtype} {tuple(out.shape)}; expected: {q.dtype} {shape}, of q and v"
        )
    s = plan.sequences
    parts = [split_sequences(x, s, keys=keys) for x, keys in ((q, False), (k, True), (v, True))]
    outs = split_sequences(out, s)
    lses = [None] * len(outs) if lse is None else split_sequences(lse, s)
    for n, (qn, kn, vn) in enumerate(zip(*parts, strict=True)):
        assert_matches_mask(
            outs[n], lses[n], (qn, kn, vn), plan_masks(plan, n),
            scale=scale, factor=factor, name=f"sequence {n}",
        )  # fmt: skip
    _check_padding(out, lse, Problem.of(q, k, v, s))


def assert_matches_mask(
    out: Tensor, lse: Tensor | None, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor, *,
    scale: float | None = None, factor: float = FACTOR, name: str = "attention",
) -> OracleError:  # fmt: skip
    """`assert_matches_oracle` for some or all rows and heads of one sequence, and a mask.

    Args:
        out: `[H, R, D]`.
        lse: `[H, R]`; None: is not checked.
        qkv: q `[H, R, D]`, k and v `[Hkv, Skv, D]`.
        mask: bool `[H, R, Skv]`, the pairs that were computed.
        scale: multiplies q.k; None: `D ** -0.5`.
        factor: how many times worse than plain PyTorch is accepted.
        name: what the message calls the result.

    Returns:
        The largest error of `out` and its budget.

    Raises:
        AssertionError: an error beyond the budget, or a row without keys that is not zeros with an
            lse of -inf.
    """
    q, k, v = (x.detach().cpu() for x in qkv)
    mask = mask.cpu()
    exact, exact_lse = reference.attend(q.double(), k.double(), v.double(), mask, scale)
    accumulator = torch.float64 if q.dtype == torch.float64 else torch.float32
    wide = q.to(accumulator), k.to(accumulator)  # halves before the softmax would excuse anything
    plain, plain_lse = reference.attend(*wide, v, mask, scale)
    empty = ~mask.any(-1)
    if bool(out.cpu()[empty].count_nonzero()):
        raise AssertionError(f"{name}: rows that keep no key are not zeros")
    step = torch.finfo(accumulator).eps * _largest_score(q, k, scale)
    if q.dtype == torch.float64:  # the oracle itself rounds: D products, then one term per key
        step *= math.sqrt(q.shape[-1] + k.shape[-2])
    rounding = torch.finfo(q.dtype).eps * float(exact.abs().max())
    found = _check(
        f"{name}: out", out, exact, plain, factor, rounding + step * float(v.double().abs().max())
    )
    if lse is not None:
        if not torch.equal(lse.cpu() == -math.inf, empty):
            raise AssertionError(f"{name}: lse is not -inf exactly on rows that keep no key")
        kept = ~empty
        # A fused kernel may round each exponential to q's dtype.
        step += torch.finfo(q.dtype).eps / 2
        _check(f"{name}: lse", lse.cpu()[kept], exact_lse[kept], plain_lse[kept], factor, step)
    return found


def _largest_score(q: Tensor, k: Tensor, scale: float | None) -> float:
    """A bound of |score| that a rounded sum of products can be measured by: scale |q| |k|."""
    factor = q.shape[-1] ** -0.5 if scale is None else abs(scale)
    return 1 + factor * float(q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max())


def _check(
    name: str, given: Tensor, exact: Tensor, plain: Tensor, factor: float, rounding: float
) -> OracleError:
    """The largest error and its budget, after checking it and the root mean square error."""
    error = (given.detach().cpu().double() - exact).abs()
    peer = (plain.double() - exact).abs()
    if not error.numel():
        return OracleError(0.0, rounding)
    rms, peer_rms = error.square().mean().sqrt(), peer.square().mean().sqrt()
    for kind, mine, theirs in (("largest", error.max(), peer.max()), ("rms", rms, peer_rms)):
        budget = factor * float(theirs) + rounding
        if not float(mine) <= budget:  # also refuses NaN
            worst = torch.where(error.isnan(), math.inf, error).argmax()
            at = tuple(int(i) for i in torch.unravel_index(worst, error.shape))
            raise AssertionError(
                f"{name}: {kind} error {float(mine):.3g} > budget {budget:.3g} = {factor:g} * "
                f"{float(theirs):.3g} (plain PyTorch, {plain.dtype}) + {rounding:.3g} (rounding); "
                f"worst at {at}: got {float(given[at]):.6g}, exact {float(exact[at]):.6g}; "
                f"{int((~(error <= budget)).sum())} of {error.numel()} values are beyond it"
            )
    return OracleError(float(error.max()), factor * float(peer.max()) + rounding)


def _check_padding(out: Tensor, lse: Tensor | None, problem: Problem) -> None:
    pad = torch.ones(as_batched(out, problem).shape[:3], dtype=torch.bool, device="cpu")
    for b, q0, q_len, _, _ in problem.sequences.rows():
        pad[b, :, q0 : q0 + q_len] = False
    if bool(as_batched(out, problem).cpu()[pad].count_nonzero()):
        raise AssertionError("rows of padding are not zeros")
    if lse is not None and bool((lse.cpu().view(pad.shape)[pad] != -math.inf).any()):
        raise AssertionError("rows of padding have an lse other than -inf")


@contextlib.contextmanager
def nan_poison() -> Generator[None]:
    """Within the block memory that torch hands out unwritten holds NaN (integers: the lowest)."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: object, **options: object) -> Tensor:
            x = allocate(*args, **options)
            return x.fill_(torch.nan if x.is_floating_point() else _lowest(x.dtype))

        return call

    with contextlib.ExitStack() as stack:
        for owner, names in (
            (torch, ("empty", "empty_like", "empty_strided")),
            (Tensor, ("new_empty",)),
        ):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, poisoned(getattr(owner, name))))
        yield


def _lowest(dtype: torch.dtype) -> int:
    return 0 if dtype == torch.bool else torch.iinfo(dtype).min
