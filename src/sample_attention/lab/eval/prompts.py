"""From what a prompt says to tokens: as long as wanted, with the right answer beside it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import InvalidInput
from ..models.tokens import encode, encode_prompt
from .metrics import NEVER_FALLING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Metric = Callable[[str, tuple[str, ...]], float]
"""From what was written and the right answers to a score in [0, 1]."""

SPARE_TOKENS = 16
"""Tokens that a model may write beyond the length of the right answer."""

SHORTEST_SLACK = 32
"""A prompt may be this much shorter than asked for, or one percent."""


@dataclass(frozen=True)
class Draft:
    """The parts of a prompt.

    Attributes:
        content: what the user says: text and question.
        lead: how the answer begins, without a space at its end; the model goes on from here.
        answers: the right ones.
        target: the right answer as it follows the lead, with the space before it.
    """

    content: str
    lead: str
    answers: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Sample:
    """One prompt of a task.

    Attributes:
        token_ids: the prompt, chat template and lead included.
        answers: the right ones.
        target_ids: tokens of the right answer, whose probability is measured.
        max_new_tokens: how much may be written.
        metric: scores what was written.
        depth: where in the prompt the answer stands, in [0, 1]; None where it is not one place.
    """

    token_ids: tuple[int, ...]
    answers: tuple[str, ...]
    target_ids: tuple[int, ...]
    max_new_tokens: int
    metric: Metric
    depth: float | None = None

    def score(self, output: str) -> float:
        """The score of what was written, in [0, 1]."""
        return self.metric(output, self.answers)

    def settled(self, output: str) -> bool:
        """Whether writing on cannot change the score."""
        return self.metric in NEVER_FALLING and self.score(output) == 1


def seeded(*parts: object) -> random.Random:
    """Random numbers that depend on the parts and nothing else."""
    return random.Random("/".join(map(str, parts)))


def build_sample(
    tokenizer: PreTrainedTokenizerBase, render: Callable[[int], Draft], length: int, metric: Metric,
    depth: float | None = None,
) -> Sample:  # fmt: skip
    """The longest prompt that fits.

    Args:
        tokenizer: counts; its chat template is applied if it has one.
        render: from an amount of filler (0: none) to what the prompt says.
        length: tokens of prompt and answer together; reached to within a percent, never passed.
        metric: scores answers.
        depth: goes to the sample.

    Raises:
        InvalidInput: not even a prompt without filler fits.
    """

    def make(size: int) -> Sample:
        return _encode(tokenizer, render(size), metric, depth)

    best = make(0)
    bare = taken = _total(best)
    if bare > length:
        raise InvalidInput(f"length is {length}; the question alone takes {bare} tokens")
    low, high, size = 0, math.inf, length // 32 + 1
    while high - low > 1 and length - _total(best) > max(SHORTEST_SLACK, length // 100):
        sample = make(size)
        taken = _total(sample)
        if taken <= length:
            low, best = size, sample
        else:
            high = size
        each = max((taken - bare) / size, 1e-3)
        aim = int((length - bare - SHORTEST_SLACK / 2) / each)
        middle = 2 * low + 1 if high == math.inf else int(low + high) // 2
        size = aim if low < aim < high else middle
    return best


def _total(sample: Sample) -> int:
    return len(sample.token_ids) + sample.max_new_tokens


def _encode(
    tokenizer: PreTrainedTokenizerBase, draft: Draft, metric: Metric, depth: float | None
) -> Sample:
    # The lead decides how the answer is cut into tokens, and ends at a boundary between words.
    lead = encode(tokenizer, draft.lead)
    target = encode(tokenizer, draft.lead + draft.target)[len(lead) :]
    prompt = encode_prompt(tokenizer, draft.content, draft.lead).token_ids
    spare = len(target) + SPARE_TOKENS
    return Sample(prompt, draft.answers, target, spare, metric, depth)
