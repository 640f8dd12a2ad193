"""What one method does to one prompt: a prefill, then everything else dense on its cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...integrations.recording import LayerStatistics
from ..generation import continue_greedily, last_logits
from ..models import LoadedModel
from .methods import Contender
from .prompts import Sample
from .tasks.texts import measured_tokens

CLOSE = 0.03
"""A density within this share of the one asked for ends the search."""

CLOSEST_DIALS = 2**-9
"""The search also ends where two points of a method's range are this near."""

ROWS_AT_ONCE = 256
"""Rows whose next-token distributions are compared in one go, in fp32."""


@dataclass(frozen=True)
class Kept:
    """What a prefill computed, and how much of the dense probability that was.

    Attributes:
        density: computed pairs over causal pairs, mean over layers and heads.
        mass_mean: retained mass on held-out rows of the sparse layers, mean over heads; None, like
            the next two, where it was not measured.
        mass_p5: its 5th percentile in each head, mean over heads.
        mass_min: its minimum over all rows and heads, the CRA.
    """

    density: float = 1.0
    mass_mean: float | None = None
    mass_p5: float | None = None
    mass_min: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One prompt under one method.

    Attributes:
        score: of what was written; of real text the share of the tokens that are the likeliest.
        answer_logprob: natural logarithm of the probability of the right answer; of real text the
            mean over its tokens.
        kept: what the prefill computed.
        kl: of real text KL(dense || method) of the next token in nats, mean over tokens.
        agreement: of real text the share of tokens whose likeliest successor is that of dense.
    """

    score: float
    answer_logprob: float
    kept: Kept
    kl: float | None = None
    agreement: float | None = None


@torch.inference_mode()
def measure_answer(
    loaded: LoadedModel, sample: Sample, method: Contender, *, routed: bool = False
) -> Measurement:
    """Prefill by the method, measure the right answer, and write an answer, on the same cache.

    Args:
        loaded: the model.
        sample: the prompt.
        method: attends in the prefill.
        routed: short prompts run dense, as the policy decides.
    """
    model: Any = loaded.model
    token_ids = _batch(loaded, sample.token_ids)
    with method.attending(loaded.model, token_ids, routed=routed) as recorder:
        result = model(input_ids=token_ids, use_cache=True, **last_logits(loaded.model))
    cache, first = result.past_key_values, result.logits[0, -1:]
    logprob = _answer_logprob(loaded, cache, first, sample.target_ids)
    if len(sample.target_ids) > 1:
        cache.crop(1 - len(sample.target_ids))  # what of the answer was fed
    written = continue_greedily(
        loaded.model, cache, int(first.argmax()), sample.max_new_tokens,
        enough=lambda tokens: sample.settled(_text(loaded, tokens)),
    )  # fmt: skip
    score = sample.score(_text(loaded, written))
    return Measurement(score, logprob, _summary(recorder.layers))


def _answer_logprob(
    loaded: LoadedModel, cache: object, first: Tensor, target_ids: Sequence[int]
) -> float:
    """Of the whole answer after the prompt in the cache; `first` holds logits `[1, V]`."""
    model: Any = loaded.model
    target = _batch(loaded, target_ids)
    logits = first
    if len(target_ids) > 1:
        result = model(input_ids=target[:, :-1], past_key_values=cache, use_cache=True)
        logits = torch.cat([first, result.logits[0]])
    chosen = logits.float().log_softmax(-1).gather(1, target[0, :, None])
    return float(chosen.double().sum())


@torch.inference_mode()
def turned_to_density(
    loaded: LoadedModel, token_ids: Sequence[int], method: Contender, *, routed: bool = False
) -> Contender:
    """The method turned until it has the density that it names on one prompt; others unchanged.

    Bisection over whole prefills; where the density is out of reach, the nearest that was found.
    """
    if method.density is None:
        return method
    model: Any = loaded.model
    batch, best, distance = _batch(loaded, token_ids), method, math.inf
    low, high = 0.0, 1.0
    while high - low > CLOSEST_DIALS and distance > CLOSE * method.density:
        dial = (low + high) / 2
        turned = method.turned(dial, len(token_ids))
        with turned.attending(loaded.model, batch, routed=routed) as recorder:
            model(input_ids=batch, use_cache=False, **last_logits(loaded.model))
        reached = _summary(recorder.layers).density
        if abs(reached - method.density) < distance:
            best, distance = turned, abs(reached - method.density)
        low, high = (dial, high) if reached < method.density else (low, dial)
    return best


@torch.inference_mode()
def text_logits(
    loaded: LoadedModel, token_ids: Sequence[int], method: Contender, *, routed: bool = False
) -> tuple[Tensor, Kept]:
    """Read a passage by the method.

    Args:
        loaded: the model.
        token_ids: the passage.
        method: attends.
        routed: short prompts run dense, as the policy decides.

    Returns:
        logits `[T, V]` that predict the last `T = measured_tokens(length)` tokens, and what was
        computed.
    """
    model: Any = loaded.model
    batch = _batch(loaded, token_ids)
    rows = measured_tokens(len(token_ids)) + 1
    with method.attending(loaded.model, batch, routed=routed) as recorder:
        result = model(input_ids=batch, use_cache=False, **last_logits(loaded.model, rows))
    return result.logits[0, -rows:-1], _summary(recorder.layers)


@torch.inference_mode()
def compare_text(token_ids: Sequence[int], read: tuple[Tensor, Kept], dense: Tensor) -> Measurement:
    """What a method made of a passage, as `text_logits` gave it, next to dense logits `[T, V]`."""
    logits, kept = read
    targets = torch.tensor(list(token_ids)[-len(logits) :], device=logits.device)
    parts: list[Tensor] = []
    for rows in range(0, len(logits), ROWS_AT_ONCE):
        part = slice(rows, rows + ROWS_AT_ONCE)
        ours, exact = (x[part].float().log_softmax(-1) for x in (logits, dense))
        best, target = ours.argmax(-1), targets[part]
        parts.append(torch.stack([
            (best == target).double(),
            ours.gather(1, target[:, None])[:, 0].double(),
            (exact.exp() * (exact - ours)).sum(-1).double(),
            (best == exact.argmax(-1)).double(),
        ]))  # fmt: skip
    score, logprob, kl, agreement = torch.cat(parts, 1).mean(1).tolist()
    return Measurement(score, logprob, kept, max(0.0, kl), agreement)


def _text(loaded: LoadedModel, token_ids: Sequence[int]) -> str:
    return str(loaded.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _batch(loaded: LoadedModel, token_ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(token_ids)], device=loaded.model.device)


def _summary(layers: Sequence[LayerStatistics]) -> Kept:
    """Density over all layers, retained mass over those that measured it."""
    if not layers:
        return Kept()
    density = float(torch.cat([x.density for x in layers]).mean())
    rows = [(x.retained_mass_mean, x.retained_mass_p5, x.retained_mass_min) for x in layers]
    measured = [[part for part in row if part is not None] for row in rows]
    if not any(measured):
        return Kept(density)
    mean, p5, least = (torch.cat(part) for part in zip(*filter(None, measured), strict=True))
    return Kept(density, float(mean.nanmean()), float(p5.nanmean()), float(least.min()))
