"""Time to first token of a real model on real text: with dense attention and with ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...integrations.transformers import sample_attention_prefill
from ...selection.rule import Rule
from ..contenders import attention_problem, dense_attention, dense_providers
from ..generation import generate_greedily, prefill
from ..models import LoadedModel, Prompt
from ..records import Row
from .timing import summary

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

OURS = "sample_attention"


@dataclass(frozen=True)
class Observed:
    """An untimed prefill, which also warms up.

    Attributes:
        logits: of the last row, fp64 `[V]` on the CPU.
        density: mean over layers and heads.
        sparse_layers: how many calls ran sparse.
    """

    logits: Tensor
    density: float = 1.0
    sparse_layers: int = 0


def measure_ttft(
    loaded: LoadedModel, token_ids: Tensor, config: Rule, *,
    dense: Sequence[str] = (), repeats: int = 5, on_run: Callable[[str], None] = lambda _: None,
) -> list[Row]:  # fmt: skip
    """One row per method: each dense provider in the place of the model's attention, and ours.

    The methods take turns. A run is a prefill that fills a cache, with logits for the last row
    alone, and the argmax; it ends when the host knows the token.

    Args:
        loaded: the model.
        token_ids: int64 `[1, S]`.
        config: of our runs.
        dense: names of dense providers; empty: all that accept.
        repeats: timed runs of each method.
        on_run: called with the method after every timed run.

    Raises:
        UnsupportedProblem: a dense provider refuses.
        UnsupportedAttention: the model's attention is more than causal attention.
    """
    model: Any = loaded.model
    methods: dict[str, Callable[[], AbstractContextManager[object]]] = {
        p.name: partial(dense_attention, model, p)
        for p in dense_providers(dense, attention_problem(model, token_ids))
    }
    observed = {name: _observe_dense(model, token_ids, use) for name, use in methods.items()}
    observed[OURS] = _observe_ours(model, token_ids, config)
    methods[OURS] = partial(sample_attention_prefill, model, config)
    taken: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, use in methods.items():
            with use():
                taken[name].append(generate_greedily(model, token_ids, 1).ttft_s)
            on_run(name)
    reference = next(iter(observed.values()))
    return [_row(name, taken[name], observed[name], reference) for name in methods]


def prompt_facts(prompt: Prompt, loaded: LoadedModel, token_ids: Tensor) -> Row:
    """What the rows of one prompt share."""
    return {
        "model": prompt.model_name, "text": prompt.text_name, "yarn": prompt.yarn,
        "seq_len": token_ids.shape[1], "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }  # fmt: skip


def _row(name: str, seconds: list[float], observed: Observed, reference: Observed) -> Row:
    times = summary(seconds)
    token, expected = int(observed.logits.argmax()), int(reference.logits.argmax())
    exact = reference.logits.log_softmax(-1)
    divergence = (exact.exp() * (exact - observed.logits.log_softmax(-1))).sum()
    return {
        "method": name, "ttft_ms": times.p50 * 1000, "ttft_ms_p20": times.p20 * 1000,
        "ttft_ms_p80": times.p80 * 1000, "repeats": times.repeats, "density": observed.density,
        "sparse_layers": observed.sparse_layers, "first_token": token,
        "same_first_token": token == expected, "next_token_kl": max(0.0, float(divergence)),
    }  # fmt: skip


def _observe_dense(
    model: PreTrainedModel, token_ids: Tensor, use: Callable[[], AbstractContextManager[object]]
) -> Observed:
    with use():
        return Observed(prefill(model, token_ids).double().cpu())


def _observe_ours(model: PreTrainedModel, token_ids: Tensor, config: Rule) -> Observed:
    with sample_attention_prefill(model, config, record=True) as recorder:
        logits = prefill(model, token_ids).double().cpu()
    density = torch.stack([x.density for x in recorder.layers]).mean()
    sparse = sum(x.route.sparse for x in recorder.layers)
    return Observed(logits, float(density), sparse)
