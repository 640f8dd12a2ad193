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

from ..api import Measured, attend, measured_attention, select
from ..backends.dense import dense_with_lse, limited
from ..config import SampleAttentionConfig
from ..policy import Decision, decide
from ..problem import Problem, Sequences
from .layout import Rows, sequences_of


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer's attention.

    Attributes:
        q: `[B, H, Sq, D]`.
        k: `[B, Hkv, Skv, D]`.
        v: like k.
        config: how keys are selected.
        scale: multiplies q.k; None: `D ** -0.5`.
        window: keys that a row sees, itself included; None: all.
        softcap: scores become `softcap * tanh(score / softcap)`; None: as they are.
        sinks: `[H]`, a score per head that takes part in the softmax without a value, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    config: SampleAttentionConfig
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


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
        out like q, and one part, or two where some sequences run sparse and others dense.
    """
    if rows is None:
        groups: list[Sequences | None] = [None]
    elif not rows:
        return torch.zeros_like(call.q), []
    else:
        groups = [*_groups(call, rows)]
    parts = [_compute_part(call, sequences) for sequences in groups]
    out = parts[0].measured.out
    for part in parts[1:]:
        out = out + part.measured.out
    return out, parts


def _groups(call: LayerCall, rows: Rows) -> list[Sequences]:
    """The sequences, apart where the policy decides apart: decoding beside a long prompt."""
    every = sequences_of(rows, call.q.device)
    problem = Problem.of(call.q, call.k, call.v, every)
    if _limits(call, problem) or not decide(problem, call.config).sparse:
        return [every]
    split: dict[bool, list[tuple[int, int, int, int, int]]] = {}
    for row in rows:
        alone = replace(every, max_q_len=row[2], max_kv_len=row[4])
        split.setdefault(decide(replace(problem, sequences=alone), call.config).sparse, []).append(
            row
        )
    return [sequences_of(tuple(group), call.q.device) for group in split.values()]


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
    reason = _limits(call, problem)
    if reason is not None:
        out, lse = limited(
            call.q, call.k, call.v, problem, problem.scale(call.scale),
            window=window, softcap=call.softcap,
        )  # fmt: skip
        measured = Measured(
            _with_sinks(out, lse, call.sinks), Decision(sparse=False, reason=reason)
        )
    elif call.sinks is not None:
        measured = _measured_with_sinks(call, problem, call.sinks)
    else:
        measured = measured_attention(
            call.q, call.k, call.v, call.config, scale=call.scale, sequences=sequences
        )
    return LayerPart(measured, problem, window)


def _measured_with_sinks(call: LayerCall, problem: Problem, sinks: Tensor) -> Measured:
    """`measured_attention`, then the sinks, which need the log-sum-exp."""
    q, k, v, config = call.q, call.k, call.v, call.config
    decision = decide(problem, config)
    if not decision.sparse:
        out, lse = dense_with_lse(q, k, v, problem, problem.scale(call.scale))
        return Measured(_with_sinks(out, lse, sinks), decision)
    plan = select(q, k, config, scale=call.scale, sequences=problem.sequences)
    out, lse = attend(q, k, v, plan, scale=call.scale)
    mass = plan.retained_mass(lse) if plan.probe is not None else None
    guarded = None
    if config.guard is not None and mass is not None:
        guarded = mass.flatten(2).nanmean(-1) < config.guard
        if bool(guarded.any()):
            out, lse = attend(q, k, v, plan.with_dense(guarded), scale=call.scale)
    return Measured(_with_sinks(out, lse, sinks), decision, plan, mass, guarded)


def _with_sinks(out: Tensor, lse: Tensor, sinks: Tensor | None) -> Tensor:
    """The share of the softmax that the keys keep beside a sink: e^lse / (e^lse + e^sink)."""
    if sinks is None:
        return out
    share = torch.sigmoid(lse - sinks.to(lse.dtype)[:, None])
    return out * share[..., None].to(out.dtype)
