"""Carries a route out: dense attention, or select and attend, for each part of a call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ..config import Config, with_fields
from ..dense import dense, dense_with_lse
from ..plan import StripePlan
from ..problem import Problem, as_batched, keys_of, part_of, rows_of
from ..selection.rule import FixedRule
from .engines import attention_engine, choose_attention, selection_engine
from .route import Dense, Part, Route, Sparse
from .row_spans import rule_of_span


@dataclass(frozen=True)
class Measured:
    """What `measured_attention` returns.

    Attributes:
        out: like q, with the head dim of v.
        route: how each sequence ran, and why.
        plan: what was computed; None when the call ran dense, the plan was not kept, or the
            sequences ran in several ways.
        lse: as `attend` returns it, of all keys for the guarded heads; None when a sequence ran
            dense.
        retained_mass: `[N, H, G, R]` on the held-out rows, NaN where there is none; None without
            held-out rows or without a plan.
        guarded: bool `[N, H]`, heads that missed `min_retained_mass` and were computed again,
            dense; None without it.
        parts: what was done for each part of the route, where there are several.
    """

    out: Tensor
    route: Route
    plan: StripePlan | None = None
    lse: Tensor | None = None
    retained_mass: Tensor | None = None
    guarded: Tensor | None = None
    parts: tuple[Measured, ...] = ()


def run_route(
    qkv: tuple[Tensor, Tensor, Tensor], problem: Problem, route: Route, scale: float, *,
    keep_plan: bool = False, with_lse: bool = False,
) -> Measured:  # fmt: skip
    """Attention of q, k and v as they were given, packed or not.

    Args:
        qkv: of one head dim.
        problem: the facts.
        route: made for this problem.
        scale: multiplies q.k.
        keep_plan: return the plan and what is measured with it. Without, and without
            `min_retained_mass`, a long call is computed in spans of rows, and extra memory does
            not grow with the square of its length.
        with_lse: return the lse of dense parts too.
    """
    if len(route.parts) == 1:
        return _run_part(qkv, problem, route, scale, keep_plan=keep_plan, with_lse=with_lse)
    q, whole = qkv[0], problem.sequences
    with_lse |= all(isinstance(part.answer, Sparse) for part in route.parts)
    out, parts, lse = torch.zeros_like(q), list[Measured](), None
    for part in route.parts:
        span = part.first, part.stop
        some = part_of(*qkv, whole, *span)
        alone = replace(route, parts=(replace(part, first=0, stop=part.stop - part.first),))
        of_part = replace(problem, sequences=whole.part(*span))
        done = _run_part(some, of_part, alone, scale, keep_plan=keep_plan, with_lse=with_lse)
        rows_of(out, whole, *span).add_(done.out)  # zeros in the rows of other sequences
        if with_lse and done.lse is not None:
            shape = q.shape[1::-1] if whole.packed else q.shape[:3]
            lse = done.lse.new_full(shape, -torch.inf) if lse is None else lse
            rows = rows_of(lse, whole, *span)
            rows.copy_(rows.maximum(done.lse))
        parts.append(done)
    return Measured(out, route, lse=lse, parts=tuple(parts))


def run_dense(qkv: tuple[Tensor, Tensor, Tensor], problem: Problem, scale: float) -> Tensor:
    """Dense attention of q, k and v as they were given: out, and no lse."""
    q, k, v = qkv
    if problem.sequences.packed:
        q, k, v = (as_batched(x, problem) for x in qkv)
    return _as_given(dense(q, k, v, problem, scale), problem)


def _run_part(
    qkv: tuple[Tensor, Tensor, Tensor], problem: Problem, route: Route, scale: float, *,
    keep_plan: bool, with_lse: bool,
) -> Measured:  # fmt: skip
    (part,) = route.parts
    if isinstance(part.answer, Dense) and not with_lse:
        return Measured(run_dense(qkv, problem, scale), route)
    q, k, v = (as_batched(x, problem) for x in qkv) if problem.sequences.packed else qkv
    if isinstance(part.answer, Dense) or part.rule is None:
        out, lse = dense_with_lse(q, k, v, problem, scale)
        return Measured(_as_given(out, problem), route, lse=_lse_as_given(lse, problem))
    least = part.rule.check.min_retained_mass if isinstance(part.rule, Config) else None
    if not keep_plan and least is None:
        out, lse = _in_spans(q, k, v, problem, part, route.backend, scale)
        return Measured(_as_given(out, problem), route, lse=_lse_as_given(lse, problem))
    plan = _select(q, k, problem, part.rule, part.answer.selection, scale)
    engine = attention_engine(choose_attention(route.backend, problem, plan.form))
    out, lse = engine.attend(q, k, v, problem, plan, scale)
    mass = plan.retained_mass(lse) if plan.held_out is not None else None
    guarded = None
    if least is not None and mass is not None:
        guarded = mass.flatten(2).nanmean(-1) < least
        _redo_dense((q, k, v), (out, lse), guarded, problem, scale)
    given = _as_given(out, problem)
    return Measured(given, route, plan, _lse_as_given(lse, problem), mass, guarded)


def _select(
    q: Tensor, k: Tensor, problem: Problem, rule: FixedRule, engine: str, scale: float
) -> StripePlan:
    if isinstance(rule, Config):
        return selection_engine(engine).select(q, k, problem, rule, scale)
    return rule.select(q, k, problem, scale)


def _in_spans(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, part: Part, backend: str, scale: float
) -> tuple[Tensor, Tensor]:
    """Select and attend span by span: out like q and lse `[B, H, Sq]`."""
    answer, rule = cast("Sparse", part.answer), cast("FixedRule", part.rule)
    if isinstance(rule, Config) and rule.check.held_out_rows:
        rule = with_fields(rule, held_out_rows=0)  # nobody would see the mass
    if len(answer.spans) == 1:
        plan = _select(q, k, problem, rule, answer.selection, scale)
        engine = attention_engine(answer.attention or choose_attention(backend, problem, plan.form))
        return engine.attend(q, k, v, problem, plan, scale)
    offset, lses = k.shape[2] - q.shape[2], list[Tensor]()
    whole = q.new_empty(q.shape)  # joined at the end, the results would be there twice
    for rows in answer.spans:
        last = offset + rows.stop
        some = q[:, :, rows.start : rows.stop], k[:, :, :last], v[:, :, :last]
        span, its_rule = Problem.of(*some), rule_of_span(rule, rows, q.shape[2])
        plan = _select(*some[:2], span, its_rule, answer.selection, scale)
        engine = attention_engine(answer.attention or choose_attention(backend, span, plan.form))
        out, lse = engine.attend(*some, span, plan, scale)
        whole[:, :, rows.start : rows.stop] = out
        lses.append(lse)
    return whole, torch.cat(lses, 2)


def _redo_dense(
    views: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    guarded: Tensor,
    problem: Problem,
    scale: float,
) -> None:
    """Compute the flagged heads of the flagged sequences again, dense, into out and lse."""
    (q, k, v), (out, lse) = views, results
    s = problem.sequences
    for n, (b, q0, q_len, _, _) in enumerate(s.rows()):
        rows = slice(q0, q0 + q_len)
        for h in guarded[n].nonzero()[:, 0].tolist():
            kv = slice(h // problem.group_size, h // problem.group_size + 1)
            keys, values = (keys_of(x[:, kv], s, n)[None] for x in (k, v))
            head = q[b : b + 1, h : h + 1, rows], keys, values
            again, again_lse = dense_with_lse(*head, Problem.of(*head), scale)
            out[b, h, rows], lse[b, h, rows] = again[0, 0], again_lse[0, 0]


def _as_given(out: Tensor, problem: Problem) -> Tensor:
    """The batched out `[B, H, S, D]` as q was given."""
    return out[0].transpose(0, 1) if problem.sequences.packed else out


def _lse_as_given(lse: Tensor, problem: Problem) -> Tensor:
    return lse[0] if problem.sequences.packed else lse
