"""What became of each way of calling a tiny model, on the dense and on the sparse route.

| verdict   | meaning                                                                  |
|-----------|--------------------------------------------------------------------------|
| equal     | as eager attention, up to a few times what rounding of the weights does  |
| refused   | an error that says why, from this package or from transformers           |
| eager     | eager attention fails too, or has no such case                           |
| wrong     | another answer, without a word                                           |
| crash     | any other error                                                          |
"""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from zoo_cases import (
    CASES,
    OPTIONAL,
    Answer,
    Case,
    changed_end,
    distance,
    packed_alone,
    prefill,
)
from zoo_models import SEED, construct, tiny_model

from sample_attention import SampleAttentionConfig
from sample_attention.errors import UnsupportedAttention
from sample_attention.integrations.support import NAME
from sample_attention.integrations.transformers import register, sample_attention_prefill

FACTOR = 8
"""How many times what rounding costs eager attention is accepted."""

LOOSEST = 0.25
"""Beyond this share of the logits' spread eager attention itself is not reproducible."""

# Every row is sampled and next to nothing is dropped: sparse has to give what dense gives.
EVERYTHING = SampleAttentionConfig.preset(
    "pooled", coverage=1 - 1e-9, segment=16, pool=None, row_stride=1, window=8, dense_prefix=0,
    dense_tail=0, dense_above=1.0,
)  # fmt: skip

POLICIES = {"dense": "auto", "sparse": "sparse"}
ROUTES = {"dense": SampleAttentionConfig(), "sparse": EVERYTHING}

Finding = dict[str, Any]
Model = Any


@contextlib.contextmanager
def on_route(route: str) -> Generator[None]:
    """Within the block the registered implementation takes the route."""
    register(ROUTES[route], policy=POLICIES[route])
    try:
        yield
    finally:
        register()


def afresh(model: Model, run: Case) -> Answer:
    """What a call gives without what the model remembers of the positions of an earlier one."""
    for part in model.modules():
        if getattr(part, "rope_deltas", None) is not None:
            part.rope_deltas = None
    return run(model)


def inside(model: Model, route: str, run: Case) -> Answer:
    """What a call gives in the block that the documentation shows."""
    with on_route(route), sample_attention_prefill(model, ROUTES[route], policy=POLICIES[route]):
        return afresh(model, run)


def switched(model: Model, route: str, run: Case) -> Answer:
    """What a call gives after `set_attn_implementation`."""
    other = copy.deepcopy(model)
    with on_route(route):
        other.set_attn_implementation(NAME)
        return afresh(other, run)


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _refusal(error: BaseException) -> bool:
    """Whether an error says that the implementation cannot be used."""
    texts = ("attn_implementation", "does not support an attention implementation")
    return isinstance(error, UnsupportedAttention) or (
        isinstance(error, ValueError | ImportError) and any(text in str(error) for text in texts)
    )


class Examination:
    """A model in eager attention with all that others are compared with."""

    def __init__(self, name: str) -> None:
        """Build the model; whatever its constructor raises passes through."""
        self.name, self.model = name, tiny_model(name)
        self.rounded, self.halves = _rounded(self.model), copy.deepcopy(self.model).bfloat16()
        self.answers: dict[str, Answer] = {}

    @torch.no_grad()
    def _causal(self) -> bool:
        """Whether the last token leaves all earlier rows as they were."""
        try:
            budget, _ = self.expect("causality", changed_end)
            before = Answer(afresh(self.model, prefill).logits[:, :-1])
        except Exception:
            return False
        return distance(self.answers["causality"], before) <= budget

    def expect(self, case: str, run: Case) -> tuple[float, Finding | None]:
        """The permitted error of a case, or why eager attention has none; keeps its answer."""
        model = self.halves if case == "bf16" else self.rounded
        try:
            answer = self.answers[case] = afresh(self.model, run)
            if not bool(answer.logits.isfinite().all()):
                return 0, {"verdict": "eager", "reason": "logits are not finite"}
            budget = FACTOR * distance(afresh(model, run), answer)
        except Exception as error:
            return 0, {"verdict": "eager", "reason": _said(error)}
        if not budget < LOOSEST * (FACTOR if case == "bf16" else 1):
            return 0, {"verdict": "eager", "reason": "rounding alone changes the answer"}
        return max(budget, FACTOR * torch.finfo(torch.float32).eps), None

    def judged(self, case: str, run: Callable[[], Answer], budget: float) -> Finding:
        """The verdict on one run."""
        try:
            error = distance(run(), self.answers[case])
        except Exception as failure:
            if _refusal(failure):
                return {"verdict": "refused", "reason": _said(failure)}
            return {"verdict": "crash", "reason": f"{_said(failure)} ({_place(failure)})"}
        if error <= budget:
            return {"verdict": "equal"}
        return {"verdict": "wrong", "reason": f"off by {error:.2g}, rounding: {budget:.2g}"}

    def all_cases(self) -> Iterator[tuple[str, str, Finding]]:
        """The case, the route and the verdict of each."""
        cases = {**CASES, **OPTIONAL, "bf16": prefill}
        cases |= {"causality": changed_end} if self._causal() else {}
        for case, run in cases.items():
            budget, nothing = self.expect(case, run)
            if nothing is None:
                yield from self._both(case, run, budget, inside)
            elif case not in OPTIONAL:
                yield from ((case, route, nothing) for route in ROUTES)
        yield from self._ways()

    def _both(
        self, case: str, run: Case, budget: float, way: Callable[[Model, str, Case], Answer]
    ) -> Iterator[tuple[str, str, Finding]]:
        """The verdicts of both routes."""
        model = self.halves if case == "bf16" else self.model
        for route in ROUTES:
            found = self.judged(case, lambda route=route: way(model, route, run), budget)
            if case == "packed" and found["verdict"] == "wrong":
                # The reference may not know packed sequences; then each alone is what they mean.
                self.answers["alone"] = afresh(self.model, packed_alone)
                alone = self.judged("alone", lambda route=route: way(model, route, run), budget)
                found = alone if alone["verdict"] == "equal" else found
            if found["verdict"] == "wrong":
                found["reason"] += f"; sdpa: {self._sdpa(case, model, run, budget)}"
            yield case, route, found

    def _sdpa(self, case: str, model: Model, run: Case, budget: float) -> str:
        """The verdict on PyTorch's attention in the same case, to tell whose fault it is."""

        def answer() -> Answer:
            other = copy.deepcopy(model)
            other.set_attn_implementation("sdpa")
            return afresh(other, run)

        return self.judged(case, answer, budget)["verdict"]

    def _ways(self) -> Iterator[tuple[str, str, Finding]]:
        """Other ways of choosing the implementation."""
        budget, nothing = self.expect("prefill", prefill)
        if nothing is not None:
            return
        self.answers |= dict.fromkeys(("switched", "constructed"), self.answers["prefill"])
        yield from self._both("switched", prefill, budget, switched)
        try:
            construct(self.name, _stand_in())
        except Exception as error:
            reason = f"transformers accepts no registered implementation: {_said(error)}"
            yield from (("constructed", r, {"verdict": "eager", "reason": reason}) for r in ROUTES)
            return
        yield from self._both("constructed", prefill, budget, self._constructed)

    def _constructed(self, model: Model, route: str, run: Case) -> Answer:
        """What a call gives of a model that was made with the implementation."""
        with on_route(route):
            other = construct(self.name, NAME)
            other.load_state_dict(model.state_dict())
            return afresh(other.eval().float(), run)

    def recorded(self, route: str) -> tuple[int, int]:
        """Calls of attention that took part in `prefill`, and how many of them ran sparse."""
        try:
            with (
                on_route(route),
                sample_attention_prefill(self.model, ROUTES[route], record=True) as recorder,
            ):
                prefill(self.model)
        except Exception:
            return 0, 0
        return len(recorder.layers), sum(layer.route.sparse for layer in recorder.layers)


def _stand_in() -> str:
    """A registered implementation that is PyTorch's own."""
    name = "stand_in"
    AttentionInterface.register(name, AttentionInterface()["sdpa"])
    AttentionMaskInterface.register(name, AttentionMaskInterface()["sdpa"])
    return name


def _rounded(model: Model) -> Model:
    """The model with every weight moved by about a unit in its last place."""
    moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(SEED + 1)
    for x in moved.parameters():
        noise = torch.randn(x.shape, generator=generator) * torch.finfo(torch.float32).eps
        x.data.mul_(1 + noise.to(x.dtype))
    return moved


ORDER = ("crash", "wrong", "refused", "equal", "eager")


def examine(name: str) -> Finding:
    """All findings on a model type: `cases[case][route]`, and the worst of them as `verdict`."""
    try:
        subject = Examination(name)
    except Exception as error:
        return {"type": name, "verdict": "not built", "reason": _said(error), "cases": {}}
    cases: dict[str, dict[str, Finding]] = {}
    with torch.no_grad():
        for case, route, found in subject.all_cases():
            cases.setdefault(case, {})[route] = found
        calls = subject.recorded("dense")[0], subject.recorded("sparse")[1]
    verdicts = {found["verdict"] for routes in cases.values() for found in routes.values()}
    return {
        "type": name, "model": type(subject.model).__name__,
        "verdict": next(x for x in ORDER if x in verdicts),
        "attention_calls": calls[0], "sparse_calls": calls[1], "cases": cases,
    }  # fmt: skip


def grouped(row: Finding) -> Finding:
    """The row with its findings told once each, with the cases and routes that they hold for."""
    groups: dict[tuple[str, str | None], Finding] = {}
    for case, routes in row["cases"].items():
        for route, found in routes.items():
            key = found["verdict"], found.get("reason")
            group = groups.setdefault(key, {**found, "cases": {}})
            group["cases"].setdefault(case, []).append(route)
    return {name: x for name, x in row.items() if name != "cases"} | {
        "findings": list(groups.values())
    }
