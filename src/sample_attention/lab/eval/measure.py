"""What one method does to one prompt: a prefill, then everything else dense on its cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..contenders import Contender
from ..generation import continue_greedily, last_logits
from ..models import LoadedModel, batch_of_one
from ..reading import Measurement, computed_in
from .prompts import Sample

CLOSE = 0.03
"""A density within this share of the one asked for ends the search."""

CLOSEST_DIALS = 2**-9
"""The search also ends where two points of a method's range are this near."""


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
    token_ids = batch_of_one(loaded, sample.token_ids)
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
    return Measurement(score, logprob, computed_in(recorder.layers))


def _answer_logprob(
    loaded: LoadedModel, cache: object, first: Tensor, target_ids: Sequence[int]
) -> float:
    """Of the whole answer after the prompt in the cache; `first` holds logits `[1, V]`."""
    model: Any = loaded.model
    target = batch_of_one(loaded, target_ids)
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
    batch, best, distance = batch_of_one(loaded, token_ids), method, math.inf
    low, high = 0.0, 1.0
    while high - low > CLOSEST_DIALS and distance > CLOSE * method.density:
        dial = (low + high) / 2
        turned = method.turned(dial, len(token_ids))
        with turned.attending(loaded.model, batch, routed=routed) as recorder:
            model(input_ids=batch, use_cache=False, **last_logits(loaded.model))
        reached = computed_in(recorder.layers).density
        if abs(reached - method.density) < distance:
            best, distance = turned, abs(reached - method.density)
        low, high = (dial, high) if reached < method.density else (low, dial)
    return best


def _text(loaded: LoadedModel, token_ids: Sequence[int]) -> str:
    return str(loaded.tokenizer.decode(list(token_ids), skip_special_tokens=True))
