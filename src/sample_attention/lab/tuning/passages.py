"""Real text to tune on, and other real text to validate on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import InvalidInput
from ..models import reference_text
from ..models.tokens import encode, start_tokens
from ..reading import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Passage = tuple[int, ...]


def split_passages(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, count: int, apart: int
) -> tuple[list[Passage], list[Passage]]:
    """`count` passages to tune on, and as many from later in the texts.

    Args:
        tokenizer: makes the tokens.
        texts: kinds of `reference_text`, which take turns.
        length: tokens of each passage.
        count: passages of each group; those of one text are spread evenly and may overlap.
        apart: tokens between the ends of two passages, so that their last rows are others.

    Raises:
        InvalidInput: a text is too short.
    """
    each = -(-count // len(texts))
    found = [_spread(tokenizer, kind, length, 2 * each, apart) for kind in texts]
    firsts, seconds = ([x[part] for x in found] for part in (slice(each), slice(each, None)))
    return _take_turns(firsts)[:count], _take_turns(seconds)[:count]


def _spread(
    tokenizer: PreTrainedTokenizerBase, kind: str, length: int, count: int, apart: int
) -> list[Passage]:
    text = reference_text(kind)[: CHARACTERS_PER_TOKEN * length * count]
    tokens, front = encode(tokenizer, text), start_tokens(tokenizer)
    each = length - len(front)
    room, needed = len(tokens) - each, apart * (count - 1)
    if room < needed:
        raise InvalidInput(
            f"the text '{kind}' has {len(tokens)} tokens; {count} passages of {length} with other "
            f"last rows need {each + needed}: choose fewer requests, shorter lengths, or the "
            "text code alone"
        )
    starts = [i * room // (count - 1) for i in range(count)]
    return [(*front, *tokens[start : start + each]) for start in starts]


def _take_turns(found: list[list[Passage]]) -> list[Passage]:
    return [passage for turn in zip(*found, strict=True) for passage in turn]
