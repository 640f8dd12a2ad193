"""Real text to predict: perplexity, and how far a method moves the next-token distribution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....errors import InvalidInput
from ...models import reference_text
from ...models.tokens import encode, start_tokens
from ...reading import CHARACTERS_PER_TOKEN, measured_tokens, with_quotations
from ..prompts import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


TEXT_TASKS = (TextTask("ppl_prose", "prose"), TextTask("ppl_code", "code"))
QUOTING_TASKS = (
    TextTask("quotes_prose", "prose", quoting=True), TextTask("quotes_code", "code", quoting=True)
)  # fmt: skip
