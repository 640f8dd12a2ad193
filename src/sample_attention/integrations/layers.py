"""Attention of one layer of a model: sparse where it may be, exact where the layer is special.

| the layer has        | what runs                                                             |
|----------------------|-----------------------------------------------------------------------|
| nothing special      | what the router answers                                               |
| a sliding window     | exact attention inside the window; a window of all keys is no window  |
| capped scores        | exact attention                                                       |
| sinks                | any of these, then `out * sigmoid(lse - sink)`                        |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ..dense import limited
from ..problem import Problem, SequenceRow, Sequences, in_one_width
from ..problem.modes import autocasts, outside_autocast
from ..routing.policy import Policy
from ..routing.route import all_dense, route
from ..routing.run import Measured, run_route
from ..selection.rule import Rule
from .layout import Rows, sequences_of


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer's attention.

    Attributes:
        q: `[B, H, Sq, D]`.
        k: `[B, Hkv, Skv, D]`.
        v: like k, with any head dim.
        config: how keys are selected.
        scale: multiplies q.k; None: `D ** -0.5`.
        window: keys that a row sees, itself included; None: all.
        softcap: scores become `softcap * tanh(score / softcap)`; None: as they are.
        sinks: `[H]`, a score per head that takes part in the softmax without a value, or None.
        policy: as for `sample_attention`.
        keep_plan: return what statistics need.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    config: Rule
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    policy: Policy = "auto"
    keep_plan: bool = False


@dataclass(frozen=True)
class LayerPart:
    """What was done for some of the sequences of a call.

    Attributes:
        measured: the result; rows of other sequences are zeros.
        problem: the facts, with these sequences.
        window: the sliding window, where it was narrower than the keys.
    """

    measured: Measured
    problem: Problem
    window: int | None


def compute(call: LayerCall, rows: Rows | None) -> tuple[Tensor, list[LayerPart]]:
    """Attention of the sequences in `rows` (None: each batch row is one); other rows give zeros.

    Returns:
        out like q with the head dim of v, and a part for all neighbouring sequences that run alike.
    """
    if call.q.shape[-1] != call.v.shape[-1] or autocasts(call.q):
        return _compute_alike(call, rows)
    if rows is None:
        return _compute_group(call, None)
    out, parts = torch.zeros_like(call.q), list[LayerPart]()
    for group in _groups(call, rows):
        batch = sorted({row.batch for row in group})
        if len(batch) == len(call.q):
            some, done = _compute_group(call, sequences_of(group, call.q.device))
            out += some
        else:
            q, k, v = (x[batch] for x in (call.q, call.k, call.v))
            moved = tuple(row._replace(batch=batch.index(row.batch)) for row in group)
            alone = replace(call, q=q, k=k, v=v)
            some, done = _compute_group(alone, sequences_of(moved, q.device))
            out[batch] += some
        parts += done
    return out, parts


def _compute_alike(call: LayerCall, rows: Rows | None) -> tuple[Tensor, list[LayerPart]]:
    """The same with tensors of one dtype and one head dim, as autocast and padding make them."""
    scale = call.q.shape[-1] ** -0.5 if call.scale is None else call.scale
    with outside_autocast(call.q.device) as cast:
        q, k, v = in_one_width(cast(call.q), cast(call.k), cast(call.v))
        out, parts = compute(replace(call, q=q, k=k, v=v, scale=scale), rows)
    return out[..., : call.v.shape[-1]].to(call.q.dtype), parts


def _groups(call: LayerCall, rows: Rows) -> list[Rows]:
    """The sequences that are longer than the layer's window, and the others."""
    split: dict[bool, list[SequenceRow]] = {}
    for row in rows:
        split.setdefault(_limit(call, row.kv_len) is None, []).append(row)
    return [tuple(group) for group in split.values()]


def _limit(call: LayerCall, kv_len: int) -> str | None:
    """Why the layer cannot run sparse on so many keys; None where it can."""
    if call.softcap is not None:
        return f"scores are capped at {call.softcap:g}: computed exactly"
    if call.window is not None and call.window < kv_len:
        return f"sliding window of {call.window} keys: computed exactly"
    return None


def _compute_group(call: LayerCall, sequences: Sequences | None) -> tuple[Tensor, list[LayerPart]]:
    problem, qkv = Problem.of(call.q, call.k, call.v, sequences), (call.q, call.k, call.v)
    scale, longest = problem.scale(call.scale), problem.sequences.max_kv_len
    reason = _limit(call, longest)
    if reason is not None:
        window = call.window if call.window is not None and call.window < longest else None
        out, lse = limited(*qkv, problem, scale, window=window, softcap=call.softcap)
        measured = Measured(out, all_dense(problem, "limited", reason))
        return _with_sinks(out, lse, call.sinks), [LayerPart(measured, problem, window)]
    measured = run_route(
        qkv, problem, route(problem, call.config, policy=call.policy), scale,
        keep_plan=call.keep_plan, with_lse=call.sinks is not None,
    )  # fmt: skip
    return _with_sinks(measured.out, measured.lse, call.sinks), _parts(measured, problem)


def _parts(measured: Measured, problem: Problem) -> list[LayerPart]:
    """Each part of a call with the facts of its sequences."""
    if not measured.parts:
        return [LayerPart(measured, problem, None)]
    spans = [(part.first, part.stop) for part in measured.route.parts]
    facts = [replace(problem, sequences=problem.sequences.part(*span)) for span in spans]
    return [LayerPart(*one, None) for one in zip(measured.parts, facts, strict=True)]


def _with_sinks(out: Tensor, lse: Tensor | None, sinks: Tensor | None) -> Tensor:
    """The share of the softmax that the keys keep beside a sink: e^lse / (e^lse + e^sink)."""
    if sinks is None:
        return out
    lse = cast("Tensor", lse)
    share = torch.sigmoid(lse - sinks.to(lse.dtype)[:, None])
    return out * share[..., None].to(out.dtype)
