"""The error that a result of attention may have, computed from the fp64 reference.

The error of a result is measured against `reference.attend` in fp64 on the mask of its plan. It is
allowed to be `factor` times the error that plain PyTorch makes in the same dtype, its scores and
softmax computed in fp32, plus what rounding the exact result to that dtype changes. Nothing in that
is typed in by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import reference
from ..plan import StripePlan
from ..problem import Problem, Sequences, as_batched, keys_of

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
