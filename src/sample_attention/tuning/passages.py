"""Real text to tune on, and other real text to validate on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InvalidInput
from ..eval.prompts import encode_text
from ..eval.tasks.texts import CHARACTERS_PER_TOKEN
from ..models import reference_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Passage = tuple[int, ...]


def split_passages(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, count: int
) -> tuple[list[Passage], list[Passage]]:
    """`count` passages from the first halves of the texts and as many from the second halves.

    Args:
        tokenizer: makes the tokens.
        texts: kinds of `reference_text`, which take turns.
        length: tokens of each passage.
        count: passages of each half; those of one text are spread evenly and may overlap.

    Raises:
        InvalidInput: half of a text is shorter than a passage.
    """
    each = -(-count // len(texts))
    firsts, seconds = list[list[Passage]](), list[list[Passage]]()
    for kind in texts:
        text = reference_text(kind)
        middle = len(text) // 2
        firsts.append(_spread(tokenizer, (kind, text[:middle]), length, each))
        seconds.append(_spread(tokenizer, (kind, text[middle:]), length, each))
    return _take_turns(firsts)[:count], _take_turns(seconds)[:count]


def _spread(
    tokenizer: PreTrainedTokenizerBase, half: tuple[str, str], length: int, count: int
) -> list[Passage]:
    kind, text = half
    tokens = encode_text(tokenizer, text[: CHARACTERS_PER_TOKEN * length * count])
    room = len(tokens) - length
    if room < 0:
        raise InvalidInput(
            f"half of the text '{kind}' has {len(tokens)} tokens, {length} are needed; choose a "
            "shorter length or the text code alone"
        )
    starts = [i * room // max(1, count - 1) for i in range(count)]
    return [tokens[start : start + length] for start in starts]


def _take_turns(found: list[list[Passage]]) -> list[Passage]:
    return [passage for turn in zip(*found, strict=True) for passage in turn]
