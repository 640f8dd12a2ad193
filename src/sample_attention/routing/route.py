"""One visit to the router: what runs for each sequence of a call, by whom, and why.

Answers come from host numbers alone: lengths, heads, dtype, device, and the rule. A sequence's
answer does not depend on its neighbours.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..config import PRESETS, Config, PaperConfig, SampleAttentionConfig
from ..dense import provider
from ..problem import Problem
from ..selection.rule import FixedRule, Rule, as_rule, fixed_rule
from . import policy as policies
from .engines import choose_attention, choose_engines
from .policy import Policy, Verdict, check_policy, decide
from .row_spans import row_spans

MOST_REMEMBERED = 64
"""Routes that a problem remembers."""


@dataclass(frozen=True)
class Dense:
    """Every key, by a provider of dense attention."""

    provider: str
    reason: str


@dataclass(frozen=True)
class Sparse:
    """Select, then attend to the plan.

    Attributes:
        selection: the engine that selects, or the type of a selector that does so by itself.
        attention: the engine that attends; None: the plan of a selector will tell.
        spans: query rows that are computed together, in order.
        reason: one clause for people.
    """

    selection: str
    attention: str | None
    spans: tuple[range, ...]
    reason: str


Answer: TypeAlias = Dense | Sparse


@dataclass(frozen=True)
class Part:
    """Neighbouring sequences, `first` to before `stop`, that run alike.

    Attributes:
        first: sequence.
        stop: past the last sequence.
        answer: how they run; the reason is that of the longest.
        rule: how keys are selected; None where they are not.
    """

    first: int
    stop: int
    answer: Answer
    rule: FixedRule | None = None


@dataclass(frozen=True)
class Route:
    """How a call runs.

    Attributes:
        parts: in the order of the sequences; one where all run alike.
        backend: that was asked for.
    """

    parts: tuple[Part, ...]
    backend: str

    @functools.cached_property
    def sparse(self) -> bool:
        """Whether any sequence runs sparse."""
        return any(isinstance(part.answer, Sparse) for part in self.parts)

    @property
    def reason(self) -> str:
        """Of the first part that runs sparse, or of the first."""
        answers = [part.answer for part in self.parts]
        return next((x for x in answers if isinstance(x, Sparse)), answers[0]).reason

    def of_sequence(self, n: int) -> Answer:
        """How one sequence runs."""
        return next(part.answer for part in self.parts if part.first <= n < part.stop)

    def __str__(self) -> str:
        """A line for each part."""
        if len(self.parts) == 1:
            return _shown(self.parts[0].answer)
        lines = (f"sequences {p.first} to {p.stop - 1}: {_shown(p.answer)}" for p in self.parts)
        return "\n".join(lines)


def route(
    problem: Problem, rule: object, *,
    backend: str = "auto", policy: Policy = "auto", ends_prompt: bool | None = None,
) -> Route:  # fmt: skip
    """How the sequences of a problem run.

    Args:
        problem: of one head dim.
        rule: how keys are selected, or what stands for it: see `as_rule`.
        backend: `auto`, or a name that never falls back.
        policy: `auto`: sparse where it pays; `dense` or `sparse`: all sequences, whatever pays.
        ends_prompt: whether the last query of a sequence is the last of its prompt. None, unknown,
            keeps what the rule keeps for the end of a prompt, as True does.

    Raises:
        InvalidConfig: unknown rule, backend or policy.
        UnsupportedProblem: no engine accepts, or not the named one.
    """
    lasting = rule in PRESETS if isinstance(rule, str) else isinstance(rule, Config)
    if not lasting:  # a file that may change, or a selector that may not be hashed
        return _route(problem, as_rule(rule), backend, policy, ends_prompt)
    crossover = policies.CROSSOVERS.get(problem.device.type)
    key = rule, backend, policy, ends_prompt, crossover
    known = problem.routes.get(key)
    if known is None:
        known = _route(problem, as_rule(rule), backend, policy, ends_prompt)
        if len(problem.routes) < MOST_REMEMBERED:
            problem.routes[key] = known
    return known


def all_dense(problem: Problem, provider: str, reason: str) -> Route:
    """The route of a call that another function has computed densely."""
    answer = Dense(provider, reason)
    return Route((Part(0, len(problem.sequences.table), answer),), "auto")


def _route(
    problem: Problem, rule: Rule, backend: str, policy: Policy, ends_prompt: bool | None
) -> Route:
    check_policy(policy)
    s, rows = problem.sequences, problem.sequences.known_rows()
    if backend != "auto":  # a name accepts, or raises, whether it pays or not
        _engines(problem, fixed_rule(rule, s.max_kv_len, problem), backend)
    lengths = [(row.q_len, row.kv_len) for row in rows] if rows and not s.uniform else []
    asked = lengths or [(s.max_q_len, s.max_kv_len)]
    answers = [_verdict(problem, rule, policy, *one) for one in asked]
    parts: list[Part] = []
    n = 0
    for _, group in itertools.groupby(zip(answers, asked, strict=True), key=_alike):
        alike = list(group)
        (verdict, fixed), _ = max(alike, key=lambda x: x[1][1])
        stop = n + len(alike) if lengths else len(s.table)
        parts.append(_part(problem, range(n, stop), verdict, _at_end(fixed, ends_prompt), backend))
        n = stop
    return Route(tuple(parts), backend)


def _verdict(
    problem: Problem, rule: Rule, policy: Policy, q_len: int, kv_len: int
) -> tuple[Verdict, FixedRule]:
    fixed, kind = fixed_rule(rule, kv_len, problem), problem.device.type
    if isinstance(fixed, Config) and fixed.dense:
        return Verdict(sparse=False, reason="coverage 1 keeps every key"), fixed
    return decide(policy, kind, policies.CROSSOVERS.get(kind), q_len, kv_len), fixed


def _alike(answer: tuple[tuple[Verdict, FixedRule], object]) -> tuple[bool, int]:
    (verdict, fixed), _ = answer
    return verdict.sparse, id(fixed) if verdict.sparse else 0


def _at_end(rule: FixedRule, ends_prompt: bool | None) -> FixedRule:
    """The rule without its dense tail where the prompt goes on."""
    if ends_prompt is False and isinstance(rule, SampleAttentionConfig | PaperConfig):
        return replace(rule, dense_tail=0)
    return rule


def _part(
    problem: Problem, sequences: range, verdict: Verdict, rule: FixedRule, backend: str
) -> Part:
    if not verdict.sparse:
        answer = Dense(provider(problem), verdict.reason)
        return Part(sequences.start, sequences.stop, answer)
    spans = tuple(row_spans(problem, rule))
    answer = Sparse(*_engines(problem, rule, backend), spans, verdict.reason)
    return Part(sequences.start, sequences.stop, answer, rule)


def _engines(problem: Problem, rule: FixedRule, backend: str) -> tuple[str, str | None]:
    """Who selects and who attends; a selector does not say what plans it makes."""
    if isinstance(rule, Config):
        return choose_engines(backend, problem, rule)
    choose_attention(backend, problem)
    return type(rule).__name__, None


def _shown(answer: Answer) -> str:
    if isinstance(answer, Dense):
        return f"dense, by {answer.provider} ({answer.reason})"
    attended = f", attended by {answer.attention}" if answer.attention else ""
    return f"sparse, selected by {answer.selection}{attended} ({answer.reason})"
