"""Tasks whose prompts are made up: from random numbers, an amount of filler and a place."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..metrics import contains_all
from ..prompts import Draft, Metric, Sample, build_sample, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Compose = Callable[[random.Random, int, float], Draft]
"""From random numbers, an amount of filler and a depth in [0, 1] to what the prompt says.

It may draw a different amount of random numbers only after all that the answer depends on.
"""


@dataclass(frozen=True)
class GeneratedTask:
    """A seeded generator of prompts.

    Attributes:
        name: as records state it.
        compose: makes one prompt of a given size.
        metric: scores answers.
        placed: whether the answer stands at the one depth that `compose` is given.
    """

    name: str
    compose: Compose
    metric: Metric = contains_all
    placed: bool = False

    def samples(
        self, tokenizer: PreTrainedTokenizerBase, length: int, n: int, seed: int
    ) -> list[Sample]:
        """`n` samples of `length` tokens, answer included; depths spread evenly over the prompt."""
        samples: list[Sample] = []
        for i in range(n):
            depth = i / (n - 1) if n > 1 else 0.5
            render = partial(self._render, f"{seed}/{self.name}/{length}/{i}", depth)
            place = depth if self.placed else None
            samples.append(build_sample(tokenizer, render, length, self.metric, place))
        return samples

    def _render(self, key: str, depth: float, size: int) -> Draft:
        return self.compose(seeded(key), size, depth)
