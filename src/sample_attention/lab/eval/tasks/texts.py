"""Real text to predict: perplexity, and how far a method moves the next-token distribution."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....errors import InvalidInput
from ...models import reference_text
from ...models.tokens import encode, start_tokens
from ..prompts import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEASURED_TOKENS = 4096
"""The last tokens of a passage, at most a quarter of it, are predicted."""

CHARACTERS_PER_TOKEN = 8
"""More than any passage of real text has."""

QUOTED_TOKENS = 48
"""Tokens of a quotation: enough for the rows after its first few to know where it stands."""


@dataclass(frozen=True)
class TextTask:
    """Passages of real text.

    Attributes:
        name: as records state it.
        kind: of `reference_text`.
        quoting: the tokens to predict quote what stands before them.
    """

    name: str
    kind: str
    quoting: bool = False

    def passages(
        self, tokenizer: PreTrainedTokenizerBase, length: int, n: int, seed: int
    ) -> Iterator[tuple[int, ...]]:
        """`n` passages of `length` tokens, each from a random place on.

        Raises:
            InvalidInput: the text is too short.
        """
        text, front = reference_text(self.kind), start_tokens(tokenizer)
        for i in range(n):
            rng = seeded(seed, self.name, length, i)
            start = rng.randrange(max(1, len(text) - CHARACTERS_PER_TOKEN * length))
            found = encode(tokenizer, text[start : start + CHARACTERS_PER_TOKEN * length])
            if len(front) + len(found) < length:
                raise InvalidInput(
                    f"{self.name}: the text has {len(found)} tokens, {length} are needed; choose "
                    "a shorter length or the task ppl_code"
                )
            passage = found[: length - len(front)]
            rows = measured_tokens(length)
            yield (*front, *(with_quotations(passage, rows) if self.quoting else passage))


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


TEXT_TASKS = (TextTask("ppl_prose", "prose"), TextTask("ppl_code", "code"))
QUOTING_TASKS = (
    TextTask("quotes_prose", "prose", quoting=True), TextTask("quotes_code", "code", quoting=True)
)  # fmt: skip
