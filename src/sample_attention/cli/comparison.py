"""One prompt answered with dense and with sparse attention, each timed by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..config import Config, Tuned, with_fields
from ..integrations.recording import LayerStatistics
from ..integrations.transformers import sample_attention_prefill
from ..lab.capture import AttentionInputs, capture_attention
from ..lab.generation import Generation, generate_greedily, prefill, warm_up
from ..lab.models import LoadedModel
from .console import layer_bar, step
from .setup import check_length, config_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DENSE, SPARSE = "dense", "sample_attention"
DENSE_IMPLEMENTATION = "sdpa"


@dataclass(frozen=True)
class Comparison:
    """The results of both ways.

    Attributes:
        prompt_tokens: length of the prompt.
        order: the timed runs as they were made, `dense` or `sample_attention`.
        runs: the generations of each kind, as they were made.
        config: what the timed sparse runs used.
        tuned_for: the model whose heads had coverages of their own beside it; None: they had not.
        held_out_rows: rows per segment that the statistics were measured on.
        layers: statistics of a prefill of their own, one per layer.
        pictured: layer that a picture can be drawn of; None where none ran sparse.
        inputs: of the attention of that layer.
    """

    prompt_tokens: int
    order: tuple[str, ...]
    runs: dict[str, tuple[Generation, ...]]
    config: Config
    tuned_for: str | None
    held_out_rows: int
    layers: tuple[LayerStatistics, ...]
    pictured: LayerStatistics | None
    inputs: AttentionInputs | None

    def ttft_s(self, method: str) -> float:
        """Median time to first token."""
        return median(run.ttft_s for run in self.runs[method])


def compare(
    loaded: LoadedModel, token_ids: Tensor, rule: Config | Tuned, *,
    max_new_tokens: int, held_out_rows: int, repeats: int,
) -> Comparison:  # fmt: skip
    """Answer a prompt in both ways.

    Statistics come from a prefill of their own, so that no timed run pays for them. Runs alternate
    and swap places in every other round: a machine that slows down does so for both.

    Args:
        loaded: the model.
        token_ids: int64 `[1, S]`.
        rule: of the sparse runs.
        max_new_tokens: longest answer.
        held_out_rows: rows per segment for the statistics; 0: as the configuration says.
        repeats: timed runs of each kind.

    Raises:
        PromptTooLong: prompt and answer do not fit the model.
    """
    check_length(loaded, token_ids.shape[1], max_new_tokens)
    config = config_for(rule, token_ids.shape[1])
    model: Any = loaded.model
    model.set_attn_implementation(DENSE_IMPLEMENTATION)
    with step("warming up"):
        warm_up(model, token_ids, config)
    order = [kind for i in range(repeats) for kind in (DENSE, SPARSE)[:: -1 if i % 2 else 1]]
    attention: dict[str, Callable[[], AbstractContextManager[object]]] = {
        DENSE: nullcontext,
        SPARSE: lambda: sample_attention_prefill(model, rule),
    }
    runs: dict[str, list[Generation]] = {DENSE: [], SPARSE: []}
    for kind in order:
        name = "sparse prefill" if kind == SPARSE else "dense prefill"
        with attention[kind](), layer_bar(model, name, max_new_tokens) as on_token:
            runs[kind].append(generate_greedily(model, token_ids, max_new_tokens, on_token))
    held_out_rows = held_out_rows or config.check.held_out_rows
    layers, pictured, inputs = _observe(model, token_ids, _measuring(rule, held_out_rows))
    made = {kind: tuple(generations) for kind, generations in runs.items()}
    return Comparison(
        token_ids.shape[1], tuple(order), made, config,
        rule.model if isinstance(rule, Tuned) else None, held_out_rows, layers, pictured, inputs,
    )  # fmt: skip


def _measuring(rule: Config | Tuned, held_out_rows: int) -> Config | Tuned:
    if isinstance(rule, Tuned):
        return rule.with_fields({"held_out_rows": held_out_rows})
    return with_fields(rule, held_out_rows=held_out_rows)


def _observe(
    model: PreTrainedModel, token_ids: Tensor, rule: Config | Tuned
) -> tuple[tuple[LayerStatistics, ...], LayerStatistics | None, AttentionInputs | None]:
    """A sparse prefill that measures itself and keeps what a picture of one layer needs."""
    layer = _layer_to_picture(model)
    with (
        sample_attention_prefill(model, rule, record=True, keep_plans=[layer]) as recorder,
        capture_attention(model, [layer]) as captured,
        layer_bar(model, "sparse prefill, measured"),
    ):
        prefill(model, token_ids)
    inputs = captured.get(layer)
    planned = [x for x in recorder.layers if x.plan is not None]
    if not planned or inputs is None or inputs.mask is not None:
        return tuple(recorder.layers), None, None
    return tuple(recorder.layers), planned[0], inputs


def _layer_to_picture(model: PreTrainedModel) -> int:
    """The layer nearest the middle of the model that sees all keys."""
    text: Any = model.config.get_text_config(decoder=True)
    count = int(text.num_hidden_layers)
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * count
    full = [i for i, kind in enumerate(kinds) if kind == "full_attention"] or [*range(count)]
    return min(full, key=lambda i: abs(i - count // 2))
