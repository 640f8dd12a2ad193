"""What every engine and provider takes: their own `refusal`, asked about made-up problems.

No GPU is needed. What refusals ask of the machine (the capability of the GPU, installed packages,
the version of cuDNN) is answered here, so that the tables are the same everywhere.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import types
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import torch

from sample_attention import Sequences, preset
from sample_attention.attention import hopper
from sample_attention.dense import flash_attention
from sample_attention.dense.base import DenseProvider, Facts
from sample_attention.dense.registry import PROVIDERS
from sample_attention.plan import PlanForm
from sample_attention.problem import Problem
from sample_attention.routing.engines import (
    ATTENTION,
    SELECTION,
    attention_engine,
    selection_engine,
)
from sample_attention.selection.geometry import plan_form

TOKENS = 8192
HOPPER = (9, 0)
GPUS = {"sm_75": (7, 5), "sm_80 (A100)": (8, 0), "sm_90 (H100, H200)": HOPPER,
        "sm_100 (B200)": (10, 0), "sm_120": (12, 0)}  # fmt: skip
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (32, 64, 80, 96, 128, 192, 256, 512)
FORMS = {
    "`default`, `fast`, `pooled`": plan_form(preset("default")),
    "`paper`": plan_form(preset("paper")), "`mlsys`": plan_form(preset("mlsys")),
    **{f"segments of {n} rows": PlanForm(n, min(n, 128)) for n in (16, 48, 64, 256)},
}  # fmt: skip
RULES = {
    "`default`, `fast`": preset("default"), "`pooled`": preset("pooled"),
    "`paper`": preset("paper"), "`mlsys`": preset("mlsys"),
    "`mlsys`, `key_block=48`": preset("mlsys", key_block=48),
    "`sampled_keys=None`": preset("default", sampled_keys=None),
    "`sampled_keys=8192`": preset("default", sampled_keys=8192),
}  # fmt: skip
LAYOUTS = {"one query (decoding)": "row", "as many queries as keys": "square",
           "fewer queries than keys": "chunk", "packed without gaps": "packed",
           "padded, paged, or with gaps": "several"}  # fmt: skip

Ask = Callable[["Case"], str | None]


class Case(NamedTuple):
    """A call that differs from the base in one thing.

    Attributes:
        name: of the thing.
        problem: the facts.
        capability: of the GPU.
        subject: what else is asked about: a rule, the form of a plan, or a layout; None: the base.
    """

    name: str
    problem: Problem
    capability: tuple[int, int] = HOPPER
    subject: Any = None


def matrix() -> str:
    """The tables: selection engines, attention engines, dense providers."""
    common = list(_common())
    return "\n\n".join((
        "## Selection engines",
        _table({x: _selects(x) for x in SELECTION}, [*common, *_subjects(RULES), *_batches()]),
        "## Attention engines",
        _table({x: _attends(x) for x in ATTENTION}, [*common, *_subjects(FORMS), *_batches()]),
        "## Providers of dense attention",
        _table({x.name: _computes(x) for x in PROVIDERS}, [*common, *_subjects(LAYOUTS)]),
    ))  # fmt: skip


def _selects(name: str) -> Ask:
    engine = selection_engine(name)
    return lambda case: engine.refusal(case.problem, case.subject or preset("default"))


def _attends(name: str) -> Ask:
    engine = attention_engine(name)
    return lambda case: engine.refusal(case.problem, case.subject or plan_form(preset("default")))


def _computes(provider: DenseProvider) -> Ask:
    def ask(case: Case) -> str | None:
        facts = Facts.of(case.problem)
        return provider.refusal(facts._replace(layout=case.subject or facts.layout))

    return ask


def _base() -> Problem:
    q, k = (torch.empty(1, heads, TOKENS, 128, dtype=torch.bfloat16) for heads in (32, 8))
    return replace(Problem.of(q, k, k), device=torch.device("cuda", 0))


def _common() -> Iterable[Case]:
    base = _base()
    yield Case("the base", base)
    yield Case("CPU", replace(base, device=torch.device("cpu")))
    yield Case("meta", replace(base, device=torch.device("meta")))
    for name, capability in GPUS.items():
        yield Case(name, base, capability)
    for dtype in DTYPES:
        yield Case(str(dtype).removeprefix("torch."), replace(base, dtype=dtype))
    for head_dim in HEAD_DIMS:
        yield Case(f"head dim {head_dim}", replace(base, head_dim=head_dim))


def _subjects(subjects: dict[str, Any]) -> Iterable[Case]:
    base = _base()
    return (Case(name, base, subject=subject) for name, subject in subjects.items())


def _batches() -> Iterable[Case]:
    ends, lengths = torch.tensor([0, 3000, TOKENS]), torch.tensor([TOKENS, 3000])
    pages = torch.zeros(2, TOKENS // 16, dtype=torch.int32)
    for name, sequences in (
        ("packed sequences", Sequences.packed_from(ends)),
        ("padded on the left", Sequences.left_padded(lengths, TOKENS, TOKENS)),
        ("paged cache", Sequences.paged(ends, lengths + 3000, torch.cat([pages, pages], 1), 16)),
    ):
        yield Case(name, replace(_base(), sequences=sequences))


def _table(asked: dict[str, Ask], cases: Iterable[Case]) -> str:
    lines = [f"| | {' | '.join(asked)} |", "|---" * (len(asked) + 1) + "|"]
    for case in cases:
        with _machine(case.capability):
            answers = [ask(case) for ask in asked.values()]
        lines.append(f"| {case.name} | {' | '.join(map(_cell, answers))} |")
    return "\n".join(lines)


def _cell(reason: str | None) -> str:
    """A verdict without the given value, which its row names."""
    short = (reason or "yes").rpartition("accepted: ")[2]
    return short.replace("torch.", "")


@contextlib.contextmanager
def _machine(capability: tuple[int, int]) -> Generator[None]:
    """A machine with such a GPU, and with everything installed."""
    spec = importlib.machinery.ModuleSpec("installed", None)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (torch.cuda, "get_device_capability", lambda _device=None: capability),
            (torch.version, "hip", None),
            (torch.backends.cudnn, "is_available", lambda: True),
            (torch.backends.cudnn, "version", lambda: 91501),
            (torch.backends.cuda, "is_flash_attention_available", lambda: True),
            (importlib.util, "find_spec", lambda _name: spec),
            (flash_attention, "import_first", _installed),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(mock.patch.dict("os.environ", {"TRITON_INTERPRET": ""}))
        hopper._device_refusal.cache_clear()  # pyright: ignore[reportPrivateUsage]
        stack.callback(hopper._device_refusal.cache_clear)  # pyright: ignore[reportPrivateUsage]
        yield


def _installed(*names: str) -> types.ModuleType:
    """A stand-in for a package, of a build that leaves nothing out."""
    module: Any = types.ModuleType(names[0])
    module.flash_attn_func = _flash_attn_func
    module.CONFIG = {"build_flags": {}}
    return module


def _flash_attn_func(*, return_attn_probs: bool, return_lse: bool) -> None:
    """The keywords that providers look for."""
