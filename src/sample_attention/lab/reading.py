"""What one method does to a passage of real text, next to dense attention on the same tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..integrations.recording import LayerStatistics
from .contenders import Contender
from .generation import last_logits
from .models import LoadedModel, batch_of_one

ROWS_AT_ONCE = 256
"""Rows whose next-token distributions are compared in one go, in fp32."""

MEASURED_TOKENS = 4096
"""The last tokens of a passage, at most a quarter of it, are predicted."""

CHARACTERS_PER_TOKEN = 8
"""More than any passage of real text has."""

QUOTED_TOKENS = 48
"""Tokens of a quotation: enough for the rows after its first few to know where it stands."""


@dataclass(frozen=True)
class Computed:
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
        computed: in the prefill.
        kl: of real text KL(dense || method) of the next token in nats, mean over tokens.
        agreement: of real text the share of tokens whose likeliest successor is that of dense.
    """

    score: float
    answer_logprob: float
    computed: Computed
    kl: float | None = None
    agreement: float | None = None


@torch.inference_mode()
def text_logits(
    loaded: LoadedModel, token_ids: Sequence[int], method: Contender, *, routed: bool = False
) -> tuple[Tensor, Computed]:
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
    batch = batch_of_one(loaded, token_ids)
    rows = measured_tokens(len(token_ids)) + 1
    with method.attending(loaded.model, batch, routed=routed) as recorder:
        result = model(input_ids=batch, use_cache=False, **last_logits(loaded.model, rows))
    return result.logits[0, -rows:-1], computed_in(recorder.layers)


@torch.inference_mode()
def compare_text(
    token_ids: Sequence[int], read: tuple[Tensor, Computed], dense: Tensor
) -> Measurement:
    """What a method made of a passage, as `text_logits` gave it, next to dense logits `[T, V]`."""
    logits, computed = read
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
    return Measurement(score, logprob, computed, max(0.0, kl), agreement)


def with_quotations(passage: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The passage, its last `rows` tokens replaced by quotations from all over what stands before.

    Args:
        passage: token ids.
        rows: how many; fewer than the half of them.
    """
    body = passage[: len(passage) - rows]
    count = -(-rows // QUOTED_TOKENS)
    starts = [i * max(0, len(body) - QUOTED_TOKENS) // count for i in range(count)]
    random.Random(len(passage)).shuffle(starts)
    quoted = [token for start in starts for token in body[start : start + QUOTED_TOKENS]]
    return (*body, *(quoted * rows)[:rows])


def measured_tokens(length: int) -> int:
    """How many of the last tokens of a passage are predicted."""
    return min(MEASURED_TOKENS, length // 4)


def computed_in(layers: Sequence[LayerStatistics]) -> Computed:
    """Density over all layers, retained mass over those that measured it."""
    if not layers:
        return Computed()
    density = float(torch.cat([x.density for x in layers]).mean())
    rows = [(x.retained_mass_mean, x.retained_mass_p5, x.retained_mass_min) for x in layers]
    measured = [[part for part in row if part is not None] for row in rows]
    if not any(measured):
        return Computed(density)
    mean, p5, least = (torch.cat(part) for part in zip(*filter(None, measured), strict=True))
    return Computed(density, float(mean.nanmean()), float(p5.nanmean()), float(least.min()))
