"""Attention of one layer of a model: sparse where it may be, exact where the layer is special.

| the layer has        | what runs                                                             |
|----------------------|-----------------------------------------------------------------------|
| nothing special      | `measured_attention`                                                  |
| a sliding window     | exact attention inside the window; a window of all keys is no window  |
| capped scores        | exact attention                                                       |
| sinks                | any of these, then `out * sigmoid(lse - sink)`                        |
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..api import Measured, measured_attention
from ..dense import dense, dense_with_lse, limited
from ..problem import Problem, SequenceRow, Sequences, in_one_width
from ..problem.modes import autocasts, outside_autocast
from ..routing.policy import Decision, decide
from ..selection.rule import Rule, fixed_rule
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
        out like q with the head dim of v, and one part, or two where some sequences run sparse and
        others dense.
    """
    if call.q.shape[-1] != call.v.shape[-1] or autocasts(call.q):
        return _compute_alike(call, rows)
    if rows is None:
        part = _compute_part(call, None)
        return part.measured.out, [part]
    out, parts = torch.zeros_like(call.q), list[LayerPart]()
    for group in _groups(call, rows):
        batch = sorted({row.batch for row in group})
        if len(batch) == len(call.q):
            part = _compute_part(call, sequences_of(group, call.q.device))
            out += part.measured.out
        else:
            q, k, v = (x[batch] for x in (call.q, call.k, call.v))
            moved = tuple(row._replace(batch=batch.index(row.batch)) for row in group)
            part = _compute_part(replace(call, q=q, k=k, v=v), sequences_of(moved, q.device))
            out[batch] += part.measured.out
        parts.append(part)
    return out, parts


def _compute_alike(call: LayerCall, rows: Rows | None) -> tuple[Tensor, list[LayerPart]]:
    """The same with tensors of one dtype and one head dim, as autocast and padding make them."""
    scale = call.q.shape[-1] ** -0.5 if call.scale is None else call.scale
    with outside_autocast(call.q.device) as cast:
        q, k, v = in_one_width(cast(call.q), cast(call.k), cast(call.v))
        out, parts = compute(replace(call, q=q, k=k, v=v, scale=scale), rows)
    return out[..., : call.v.shape[-1]].to(call.q.dtype), parts


def _groups(call: LayerCall, rows: Rows) -> list[Rows]:
    """The sequences, apart where the policy decides apart: decoding beside a long prompt."""
    split: dict[bool, list[SequenceRow]] = {}
    q = call.q
    for row in rows:
        # Only the lengths are read here; the table is that of all.
        lengths = replace(sequences_of(rows, q.device), max_q_len=row.q_len, max_kv_len=row.kv_len)
        alone = Problem(lengths, q.shape[1], call.k.shape[1], q.shape[3], q.dtype, q.device)
        decision = decide(alone, fixed_rule(call.config, alone))
        sparse = _limits(call, alone) is None and decision.sparse
        split.setdefault(sparse, []).append(row)
    return [tuple(group) for group in split.values()]


def _limits(call: LayerCall, problem: Problem) -> str | None:
    """Why the layer cannot run sparse; None where it can."""
    if call.softcap is not None:
        return f"scores are capped at {call.softcap:g}: computed exactly"
    if call.window is not None and call.window < problem.sequences.max_kv_len:
        return f"sliding window of {call.window} keys: computed exactly"
    return None


def _compute_part(call: LayerCall, sequences: Sequences | None) -> LayerPart:
    problem = Problem.of(call.q, call.k, call.v, sequences)
    window = call.window
    if window is not None and window >= problem.sequences.max_kv_len:
        window = None
    decision, reason = decide(problem, fixed_rule(call.config, problem)), _limits(call, problem)
    if reason is not None:
        out, lse = limited(
            call.q, call.k, call.v, problem, problem.scale(call.scale),
            window=window, softcap=call.softcap,
        )  # fmt: skip
        measured = Measured(out, Decision(sparse=False, reason=reason), lse=lse)
    elif decision.sparse:
        measured = measured_attention(
            call.q, call.k, call.v, call.config,
            scale=call.scale, sequences=sequences, keep_plan=call.keep_plan,
        )  # fmt: skip
    elif call.sinks is None:
        out = dense(call.q, call.k, call.v, problem, problem.scale(call.scale))
        measured = Measured(out, decision)
    else:
        out, lse = dense_with_lse(call.q, call.k, call.v, problem, problem.scale(call.scale))
        measured = Measured(out, decision, lse=lse)
    if call.sinks is not None and measured.lse is not None:
        measured = replace(measured, out=_with_sinks(measured.out, measured.lse, call.sinks))
    return LayerPart(measured, problem, window)


def _with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """The share of the softmax that the keys keep beside a sink: e^lse / (e^lse + e^sink)."""
    share = torch.sigmoid(lse - sinks.to(lse.dtype)[:, None])
    return out * share[..., None].to(out.dtype)
