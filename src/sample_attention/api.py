"""The public operations: describe, route, run.

config ──► select(q, k, config) ──► plan ──► attend(q, k, v, plan) ──► out, lse
              └────────── sample_attention(q, k, v, config) ──────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

from torch import Tensor

from .config import Config
from .dense import provider_verdicts
from .errors import InvalidInput
from .plan import StripePlan
from .problem import Problem, Sequences, as_batched, in_one_width
from .problem.modes import entrance, with_out
from .routing.compile import operator, untraced
from .routing.engines import (
    attention_engine,
    choose_attention,
    choose_selection,
    selection_engine,
    verdicts,
)
from .routing.policy import Policy
from .routing.route import Route, route
from .routing.run import Measured, run_dense, run_route
from .selection.rule import NamedRule, as_rule, fixed_rule

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
class Explanation:
    """What would run for a problem, and why.

    Attributes:
        problem: the facts in one line.
        route: how each sequence would run.
        verdicts: every backend's answer.
        dense_verdicts: every dense provider's answer.
    """

    problem: str
    route: Route
    verdicts: dict[str, str]
    dense_verdicts: dict[str, str]

    def __str__(self) -> str:
        """A few lines for people."""
        lines = [self.problem, *(f"-> {line}" for line in str(self.route).splitlines())]
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
    rule = fixed_rule(as_rule(config), problem.sequences.max_kv_len, problem)
    q, k, factor = as_batched(q, problem), as_batched(k, problem), problem.scale(scale)
    if not isinstance(rule, Config):
        return rule.select(q, k, problem, factor)
    engine = selection_engine(choose_selection(backend, problem, rule))
    return engine.select(q, k, problem, rule, factor)


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
    engine = attention_engine(choose_attention(backend, problem, plan.form))
    q, k, v = (as_batched(x, problem) for x in (q, k, v))
    out, lse = engine.attend(q, k, v, problem, plan, problem.scale(scale))
    if problem.sequences.packed:
        return AttentionOutput(out[0].transpose(0, 1), lse[0])
    return AttentionOutput(out, lse)


@operator
@entrance
def sample_attention(
    q: Tensor, k: Tensor, v: Tensor, config: NamedRule = "default", *,
    scale: float | None = None, sequences: Sequences | None = None, backend: str = "auto",
    policy: Policy = "auto",
) -> Tensor:  # fmt: skip
    """Causal attention that computes only the keys that matter: select, then attend.

    Each sequence runs dense where sparse does not pay (`explain` says why), and so do heads that
    miss `min_retained_mass`. Arguments and errors are those of `select` and `attend`.

    Args:
        q: as for `select`.
        k: as for `select`.
        v: as for `attend`.
        config: as for `select`.
        scale: as for `select`.
        sequences: as for `select`.
        backend: as for `select`; who runs the sequences that run sparse.
        policy: `auto` decides by what was measured; `dense` and `sparse` decide for all sequences,
            to compare answers. One query is always dense: there is nothing to select for.

    Returns:
        out like q, with the head dim of v.

    Source: arXiv 2406.15486.
    """
    problem = Problem.of(q, k, v, sequences)
    if problem.v_head_dim is not None:
        again = partial(
            sample_attention, config=config, sequences=sequences, backend=backend, policy=policy
        )
        return _in_one_width(again, (q, k, v), problem, scale)
    answer, factor = route(problem, config, backend=backend, policy=policy), problem.scale(scale)
    if not answer.sparse:  # the quick way: nothing is measured
        return run_dense((q, k, v), problem, factor)
    return run_route((q, k, v), problem, answer, factor).out


@untraced
@entrance
def measured_attention(
    q: Tensor, k: Tensor, v: Tensor, config: NamedRule = "default", *,
    scale: float | None = None, sequences: Sequences | None = None, backend: str = "auto",
    policy: Policy = "auto",
) -> Measured:  # fmt: skip
    """`sample_attention` together with what it did; its plan is kept, so memory is not bounded.

    With `held_out_rows` per segment the retained mass is measured on rows that took no part
    in selecting: exp(lse of the kept keys - lse of all keys). Arguments and errors are those of
    `sample_attention`.

    Returns:
        out, route, plan, lse, retained mass and guarded heads.
    """
    problem = Problem.of(q, k, v, sequences)
    if problem.v_head_dim is not None:
        again = partial(
            measured_attention, config=config, sequences=sequences, backend=backend, policy=policy
        )
        return _in_one_width(again, (q, k, v), problem, scale)
    answer = route(problem, config, backend=backend, policy=policy)
    return run_route((q, k, v), problem, answer, problem.scale(scale), keep_plan=True)


@entrance
def explain(
    q: Tensor, k: Tensor, v: Tensor, config: NamedRule = "default", *,
    sequences: Sequences | None = None, backend: str = "auto", policy: Policy = "auto",
) -> Explanation:  # fmt: skip
    """What `sample_attention` would run for these tensors, and why; computes nothing.

    Raises:
        InvalidInput, InvalidConfig, UnsupportedProblem: as `sample_attention` would.
    """
    given = Problem.of(q, k, v, sequences)
    problem = given.in_one_width if given.v_head_dim is not None else given
    answer = route(problem, config, backend=backend, policy=policy)
    return Explanation(str(given), answer, verdicts(problem), provider_verdicts(problem))


def _in_one_width(
    operation: Callable[..., R], qkv: tuple[Tensor, Tensor, Tensor], problem: Problem,
    scale: float | None,
) -> R:  # fmt: skip
    """Call the operation again with tensors of one head dim, and cut its out to that of v."""
    result = operation(*in_one_width(*qkv), scale=problem.scale(scale))
    return with_out(result, lambda out: out[..., : problem.v_head_dim].contiguous())
