"""The public operations: check, choose, call.

config ──► select(q, k, config) ──► plan ──► attend(q, k, v, plan) ──► out, lse
              └────────── sample_attention(q, k, v, config) ──────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .config import Config, with_fields
from .dense import dense, dense_with_lse, provider, provider_verdicts
from .errors import InvalidInput, UnsupportedProblem
from .plan import StripePlan
from .problem import Problem, Sequences, as_batched, in_one_width, keys_of
from .problem.modes import entrance, with_out
from .routing.compile import operator, untraced
from .routing.dispatch import choose, selector_of, verdicts
from .routing.policy import Decision, decide
from .routing.row_spans import rule_of_span, spans
from .selection.rule import FixedRule, NamedRule, fixed_rule

R = TypeVar("R")


class AttentionOutput(NamedTuple):
    """What `attend` returns.

    Attributes:
        out: like q, with the head dim of v.
        lse: natural log-sum-exp over the kept keys, fp32 (fp64 for fp64 inputs), `[B, H, Sq]` or
            packed `[H, T]`; -inf for rows that keep no key.
    """

    out: Tensor
    lse: Tensor


@dataclass(frozen=True)
class Measured:
    """What `measured_attention` returns.

    Attributes:
        out: like q, with the head dim of v.
        decision: whether the call ran sparse, and why.
        plan: what was computed; None when the call ran dense, or the plan was not kept.
        lse: as `attend` returns it, of all keys for the guarded heads; None when the call ran
            dense.
        retained_mass: `[N, H, G, R]` on the held-out rows, NaN where there is none; None without
            held-out rows or when the call ran dense.
        guarded: bool `[N, H]`, heads that missed `min_retained_mass` and were computed again,
            dense; None without it.
    """

    out: Tensor
    decision: Decision
    plan: StripePlan | None = None
    lse: Tensor | None = None
    retained_mass: Tensor | None = None
    guarded: Tensor | None = None


@dataclass(frozen=True)
class Explanation:
    """What would run for a problem, and why.

    Attributes:
        problem: the facts in one line.
        decision: dense or sparse.
        backend: who would run the sparse path; two names where one selects and one attends,
            `none` where nobody could.
        dense_provider: who would run the dense path.
        verdicts: every backend's answer.
        dense_verdicts: every dense provider's answer.
    """

    problem: str
    decision: Decision
    backend: str
    dense_provider: str
    verdicts: dict[str, str]
    dense_verdicts: dict[str, str]

    def __str__(self) -> str:
        """A few lines for people."""
        runs = (
            f"sparse by {self.backend}" if self.decision.sparse else f"dense {self.dense_provider}"
        )
        lines = [self.problem, f"-> {runs} ({self.decision.reason})"]
        for title, answers in (("backends", self.verdicts), ("dense", self.dense_verdicts)):
            lines += [f"{title}:", *(f"  {name}: {answer}" for name, answer in answers.items())]
        return "\n".join(lines)


@untraced
@entrance
def select(
    q: Tensor, k: Tensor, config: NamedRule = "default", *,
    scale: float | None = None, sequences: Sequences | None = None, backend: str = "auto",
) -> StripePlan:  # fmt: skip
    """Choose the keys that each head's rows attend to: stages 1 and 2 of the paper.

    Rows 0..7 of a plan with segments of 4 and a window of 2 (# kept, . dropped)::

        # . . . . . . .      segment 0: no column left of the windows yet
        # # . . . . . .
        # # # . . . . .
        # # # # . . . .
        # . # # # . . .      segment 1: column 0 and the windows
        # . # # # # . .
        # . # # # # # .
        # . # # # # # #

    Args:
        q: `[B, H, Sq, D]`, or `[T, H, D]` with packed `sequences`.
        k: `[B, Hkv, Skv, D]`, `[T, Hkv, D]` or, with paged `sequences`, `[P, page_size, Hkv, D]`;
            queries are the last Sq of the Skv positions.
        config: a preset's name (`default`, `fast`, `pooled`, `paper`, `mlsys`), a configuration, a
            tuned one (also as `tuned:NAME`, or as the path of a JSON file, as text or a
            `pathlib.Path`, which is read on every call), or a selector such as those of
            `sample_attention.methods`, which no backend is asked to carry out.
        scale: multiplies q.k; None: `D ** -0.5`.
        sequences: where sequences lie in a packed, paged or padded batch; None: one per batch row.
        backend: `auto` or a backend's name; a name never falls back.

    Returns:
        The plan. Heads whose k holds NaN or infinity are dense, and so is at least every segment
        whose q does, so that these reach the output as they would in dense attention.

    Raises:
        InvalidInput: the tensors do not form an attention problem, or one requires a gradient.
        InvalidConfig: unknown preset or backend, or a value out of range.
        UnsupportedProblem: no backend accepts; the message lists the reasons.
    """
    problem = Problem.of(q, k, k, sequences)
    rule = fixed_rule(config, problem)
    selector = selector_of(backend, problem, rule)
    q, k = as_batched(q, problem), as_batched(k, problem)
    return selector.select(q, k, problem, problem.scale(scale))


@untraced
@entrance
def attend(
    q: Tensor, k: Tensor, v: Tensor, plan: StripePlan, *,
    scale: float | None = None, backend: str = "auto",
) -> AttentionOutput:  # fmt: skip
    """Attention over a plan's pairs: softmax renormalised over the kept keys of each row.

    out_i = sum_j p_ij v_j with p_ij = exp(scale q_i.k_j - lse_i) over allowed j.

    Args:
        q: `[B, H, Sq, D]`, or `[T, H, D]` where the plan's sequences are packed.
        k: `[B, Hkv, Skv, D]`, `[T, Hkv, D]` or, paged, `[P, page_size, Hkv, D]`.
        v: like k; where keys are not paged, of any head dim.
        plan: made by `select`, or by hand, for these sequences and heads.
        scale: multiplies q.k; None: `D ** -0.5`.
        backend: `auto` or a backend's name; a name never falls back.

    Returns:
        `out` and `lse`.

    Raises:
        InvalidInput: the tensors do not form an attention problem, or one requires a gradient.
        PlanMismatch: the plan was made for other sequences or heads.
        UnsupportedProblem: no backend accepts; the message lists the reasons.
    """
    if not isinstance(plan, StripePlan):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"plan must be a StripePlan, as select makes it; got {type(plan)!r}")
    problem = Problem.of(q, k, v, None if plan.sequences.uniform else plan.sequences)
    plan.check_covers(problem)
    if problem.v_head_dim is not None:
        again = partial(attend, plan=plan, backend=backend)
        return _in_one_width(again, (q, k, v), problem, scale)
    chosen = choose(backend, problem, plan)
    q, k, v = (as_batched(x, problem) for x in (q, k, v))
    out, lse = chosen.attend(q, k, v, problem, plan, problem.scale(scale))
    if problem.sequences.packed:
        return AttentionOutput(out[0].transpose(0, 1), lse[0])
    return AttentionOutput(out, lse)


@operator
@entrance
def sample_attention(
    q: Tensor, k: Tensor, v: Tensor, config: NamedRule = "default", *,
    scale: float | None = None, sequences: Sequences | None = None, backend: str = "auto",
) -> Tensor:  # fmt: skip
    """Causal attention that computes only the keys that matter: select, then attend.

    Dense where sparse does not pay (`explain` says when) and for heads that miss
    `min_retained_mass`.
    Arguments and errors are those of `select` and `attend`.

    Returns:
        out like q, with the head dim of v.

    Source: arXiv 2406.15486.
    """
    problem = Problem.of(q, k, v, sequences)
    if problem.v_head_dim is not None:
        again = partial(sample_attention, config=config, sequences=sequences, backend=backend)
        return _in_one_width(again, (q, k, v), problem, scale)
    rule = fixed_rule(config, problem)
    if backend == "auto" and not decide(problem, rule).sparse:  # the quick way: no statistics
        return _dense(q, k, v, problem, problem.scale(scale))
    return measured_attention(
        q, k, v, rule, scale=scale, sequences=sequences, backend=backend, keep_plan=False
    ).out


@untraced
@entrance
def measured_attention(
    q: Tensor, k: Tensor, v: Tensor, config: NamedRule = "default", *,
    scale: float | None = None, sequences: Sequences | None = None, backend: str = "auto",
    keep_plan: bool = True,
) -> Measured:  # fmt: skip
    """`sample_attention` together with what it did.

    With `held_out_rows` per segment the retained mass is measured on rows that took no part
    in selecting: exp(lse of the kept keys - lse of all keys). Arguments and errors are those of
    `sample_attention`.

    Args:
        q: as for `select`.
        k: as for `select`.
        v: as for `attend`.
        config: as for `select`.
        scale: as for `select`.
        sequences: as for `select`.
        backend: as for `select`.
        keep_plan: return the plan and what is measured with it. Without, and without a guard, a
            long call is computed in spans of rows, and extra memory does not grow with the square
            of its length.

    Returns:
        out, decision, plan, retained mass and guarded heads.
    """
    problem = Problem.of(q, k, v, sequences)
    if problem.v_head_dim is not None:
        again = partial(
            measured_attention, config=config, sequences=sequences, backend=backend,
            keep_plan=keep_plan,
        )  # fmt: skip
        return _in_one_width(again, (q, k, v), problem, scale)
    rule = fixed_rule(config, problem)
    decision, factor = decide(problem, rule), problem.scale(scale)
    if backend == "auto" and not decision.sparse:
        return Measured(_dense(q, k, v, problem, factor), decision)
    guard = rule.check.min_retained_mass if isinstance(rule, Config) else None
    if isinstance(rule, Config) and rule.check.held_out_rows and not keep_plan and guard is None:
        rule = with_fields(rule, held_out_rows=0)  # nobody would see the mass
    selector = selector_of(backend, problem, rule)
    choose(backend, problem)
    if not decision.sparse:  # a backend that was named accepts, or has raised
        return Measured(_dense(q, k, v, problem, factor), decision)
    q, k, v = (as_batched(x, problem) for x in (q, k, v))
    if not keep_plan and guard is None:
        out, lse = _in_spans(q, k, v, problem, spans(problem, rule), factor, (rule, backend))
        lse = lse[0] if problem.sequences.packed else lse
        return Measured(_unbatched(out, problem), decision, lse=lse)
    plan = selector.select(q, k, problem, factor)
    out, lse = choose(backend, problem, plan).attend(q, k, v, problem, plan, factor)
    mass = plan.retained_mass(lse) if plan.held_out is not None else None
    guarded = None
    if guard is not None and mass is not None:
        guarded = mass.flatten(2).nanmean(-1) < guard
        _redo_dense((q, k, v), (out, lse), guarded, problem, factor)
    lse = lse[0] if problem.sequences.packed else lse
    return Measured(_unbatched(out, problem), decision, plan, lse, mass, guarded)


@entrance
def explain(
    q: Tensor, k: Tensor, v: Tensor, config: NamedRule = "default", *,
    sequences: Sequences | None = None, backend: str = "auto",
) -> Explanation:  # fmt: skip
    """What `sample_attention` would run for these tensors, and why; computes nothing.

    Raises:
        InvalidInput, InvalidConfig, UnsupportedProblem: as `sample_attention` would.
    """
    problem = Problem.of(q, k, v, sequences)
    rule, given = fixed_rule(config, problem), str(problem)
    problem = problem.in_one_width
    decision = decide(problem, rule)
    try:
        names = " then ".join(_names(backend, problem, rule))
    except UnsupportedProblem:
        if backend != "auto" or decision.sparse:
            raise
        names = "none"
    return Explanation(
        problem=given,
        decision=decision,
        backend=names,
        dense_provider=provider(problem),
        verdicts=verdicts(problem),
        dense_verdicts=provider_verdicts(problem),
    )


def _in_one_width(
    operation: Callable[..., R], qkv: tuple[Tensor, Tensor, Tensor], problem: Problem,
    scale: float | None,
) -> R:  # fmt: skip
    """Call the operation again with tensors of one head dim, and cut its out to that of v."""
    result = operation(*in_one_width(*qkv), scale=problem.scale(scale))
    return with_out(result, lambda out: out[..., : problem.v_head_dim].contiguous())


def _in_spans(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, parts: list[range], scale: float,
    who: tuple[FixedRule, str],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Select and attend span by span: out like q and lse `[B, H, Sq]`."""
    rule, backend = who
    if len(parts) == 1:
        plan = selector_of(backend, problem, rule).select(q, k, problem, scale)
        return choose(backend, problem, plan).attend(q, k, v, problem, plan, scale)
    offset, lses = k.shape[2] - q.shape[2], list[Tensor]()
    whole = q.new_empty(q.shape)  # joined at the end, the results would be there twice
    for rows in parts:
        last = offset + rows.stop
        some = q[:, :, rows.start : rows.stop], k[:, :, :last], v[:, :, :last]
        part = Problem.of(*some)
        selector = selector_of(backend, part, rule_of_span(rule, rows, q.shape[2]))
        plan = selector.select(*some[:2], part, scale)
        out, lse = choose(backend, part, plan).attend(*some, part, plan, scale)
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


def _names(backend: str, problem: Problem, rule: FixedRule) -> list[str]:
    """Who would select and who would attend: one name where they are the same."""
    if isinstance(rule, Config):
        return [choose(backend, problem, rule).name]
    return [type(rule).__name__, choose(backend, problem).name]


def _dense(q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
    """Dense attention of tensors as they were given, packed or not."""
    if problem.sequences.packed:
        q, k, v = (as_batched(x, problem) for x in (q, k, v))
    return _unbatched(dense(q, k, v, problem, scale), problem)


def _unbatched(out: Tensor, problem: Problem) -> Tensor:
    return out[0].transpose(0, 1) if problem.sequences.packed else out
