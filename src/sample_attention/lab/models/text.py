"""Real text that every Python has, and retrieval prompts made of it.

The prose is the Python language reference as `pydoc_data.topics` holds it; the code is the standard
library, for prompts longer than the prose. A needle prompt hides
one fact (a five-digit number) in it and asks for the number at the end. The wording was chosen so
that a model of 135M parameters answers at 7,000 tokens: the fact is said twice in a row, since said
once it is at times lost among real text.
"""

from __future__ import annotations

import random
import re
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ...errors import InvalidInput
from .tokens import EncodedPrompt, encode, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS: Final = MappingProxyType({"prose": "python-reference", "code": "python-stdlib"})
"""The kinds of text, each with its name in records."""

_WORDS_OF_A_PARAGRAPH: Final = 10
_LETTER_SHARE: Final = 0.85
_CHARACTERS_PER_TOKEN: Final = 8
_SUBJECTS: Final = ("garden", "harbor", "library", "museum", "railway", "theater")
_INSTRUCTION: Final = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n\n"
)


@dataclass(frozen=True)
class NeedlePrompt:
    """A prompt with one planted fact.

    Attributes:
        text: the whole prompt, with the chat template applied.
        token_ids: its tokens, behind the first one of models that have such; batch them as
            `torch.tensor([prompt.token_ids])`.
        answer: what a right answer contains.
        question: the question at the end of the prompt.
    """

    text: str
    token_ids: tuple[int, ...]
    answer: str
    question: str


@cache
def reference_text(kind: str = "prose") -> str:
    """Return real text that every Python has; the same on every machine with the same Python.

    Args:
        kind: `prose`, some 200,000 characters of the language reference, topics in order of name,
            paragraphs unwrapped and separated by blank lines, without code, grammar, tables,
            headings and what several topics repeat; or `code`, some 4,000,000 characters of the
            modules of the standard library that are single files, in order of name.

    Raises:
        InvalidInput: another kind.
    """
    if kind not in TEXTS:
        raise InvalidInput(f"there is no text '{kind}'; accepted: {', '.join(TEXTS)}")
    return _prose() if kind == "prose" else _code()


def _prose() -> str:
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    blocks = (block for name in sorted(topics) for block in topics[name].split("\n\n"))
    paragraphs = (_unwrap(block) for block in blocks if not _is_code(block))
    return "\n\n".join(dict.fromkeys(filter(_is_prose, paragraphs))) + "\n"


def _code() -> str:
    library = Path(sysconfig.get_path("stdlib"))
    files = (library / f"{name}.py" for name in sorted(sys.stdlib_module_names))
    return "\n".join(path.read_text("utf-8") for path in files if path.is_file())


def _unwrap(block: str) -> str:
    return " ".join(re.sub(r"(\w-)\n\s*(?=\w)", r"\1", block).split())


def _is_code(block: str) -> bool:
    return any(mark in block for mark in ("::=", ">>>", " = ", "----", "****", "====", "    "))


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    enough = len(paragraph.split()) >= _WORDS_OF_A_PARAGRAPH
    return enough and paragraph[-1] in ".:" and letters >= _LETTER_SHARE * len(paragraph)


def needle_prompt(
    tokenizer: PreTrainedTokenizerBase,
    num_tokens: int,
    *,
    depth: float = 0.5,
    seed: int = 0,
) -> NeedlePrompt:
    """Build a chat prompt of real text with one fact planted in it and a question at the end.

    Args:
        tokenizer: counts the tokens; its chat template is applied if it has one.
        num_tokens: length of the prompt; reached to within a few tokens, never passed.
        depth: where the fact stands, from 0 (start of the text) to 1 (its end).
        seed: chooses the fact, and where in the reference the text begins.

    Raises:
        InvalidInput: a depth outside [0, 1], or too few tokens for the fact and the question.
    """
    if not 0.0 <= depth <= 1.0:
        raise InvalidInput(f"depth is {depth}; it must lie between 0 and 1")
    rng = random.Random(seed)
    subject = rng.choice(_SUBJECTS)
    answer = str(rng.randrange(10_000, 100_000))
    fact = f"special magic number for the {subject} is {answer}."
    needle = f"The {fact} Remember it: the {fact}"
    question = f"Now the quiz: what is the special magic number for the {subject}?"
    start = rng.randrange(len(reference_text()))
    overhead = len(_asked(tokenizer, needle, question).token_ids)
    budget = num_tokens - overhead
    filler = _filler(tokenizer, start, max(budget, 0))
    while budget >= 0:
        hay = tokenizer.decode(filler[:budget])
        text, token_ids = _asked(tokenizer, _plant(str(hay), needle, depth), question)
        if len(token_ids) <= num_tokens:
            return NeedlePrompt(text, token_ids, answer, question)
        budget -= len(token_ids) - num_tokens
    raise InvalidInput(
        f"num_tokens is {num_tokens}; the fact and the question alone take {overhead} tokens"
    )


def _filler(tokenizer: PreTrainedTokenizerBase, start: int, num_tokens: int) -> list[int]:
    """Return `num_tokens` tokens of the reference from the paragraph after `start`, cyclically."""
    reference = reference_text()
    _, separator, after = reference[start:].partition("\n\n")
    begin = len(reference) - len(after) if separator else 0
    rotated = reference[begin:] + "\n" + reference[:begin]
    repeats = -(-num_tokens * _CHARACTERS_PER_TOKEN // len(rotated))
    text = (rotated * repeats)[: num_tokens * _CHARACTERS_PER_TOKEN]
    return list(encode(tokenizer, text)[:num_tokens])


def _plant(hay: str, needle: str, depth: float) -> str:
    """Put `needle` as a paragraph of its own at the paragraph break nearest to `depth`."""
    breaks = [0, *(match.end() for match in re.finditer(r"\n\n", hay)), len(hay)]
    place = min(breaks, key=lambda position: abs(position - depth * len(hay)))
    return f"{hay[:place].rstrip()}\n\n{needle}\n\n{hay[place:].lstrip()}".strip()


def _asked(tokenizer: PreTrainedTokenizerBase, document: str, question: str) -> EncodedPrompt:
    content = f"{_INSTRUCTION}{document}\n\n{question}"
    return encode_prompt(tokenizer, content, "Answer:" if tokenizer.chat_template is None else "")
