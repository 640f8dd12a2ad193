"""RULER's aggregation tasks: the words that occur most often in a list, and in a coded text."""

from __future__ import annotations

import random
import string

from .. import haystack as hay
from ..prompts import Draft
from .generated import GeneratedTask

COMMON_WORDS = 10
COMMON_REPEATS, OTHER_REPEATS = 30, 3
"""RULER's `freq_cw` and `freq_ucw`."""

SHORT_COMMON_REPEATS, SHORT_LIST = 6, 500
"""A list with fewer other entries than this repeats the common words less, and the others not."""

EXAMPLE_WORDS, EXAMPLE_COMMON_REPEATS = 20, 3
"""The worked example that comes first: its other words occur once."""

FREQUENT_WORDS, CODED_LENGTH, EXPONENT = 3, 6, 2.0
"""Coded words follow a zeta distribution with this exponent; the most frequent is noise: `...`."""

RIEMANN_ZETA = 1.6449340668482264
"""Of the exponent: pi squared over six."""


def compose_common(rng: random.Random, size: int, depth: float) -> Draft:
    """A worked example, then a numbered list of ten common words and `size` entries of others."""
    del depth
    pool = hay.real_words()
    picks = rng.sample(range(len(pool)), 2 * COMMON_WORDS + EXAMPLE_WORDS)
    words = [pool[i] for i in picks]
    common, sample, rest = words[:10], words[10:20], words[20:]
    shuffle = rng.getrandbits(64)
    short = size < SHORT_LIST
    repeats = (SHORT_COMMON_REPEATS, 1) if short else (COMMON_REPEATS, OTHER_REPEATS)
    others = _others(random.Random(shuffle), size // repeats[1], set(words))
    example = _numbered(rng, sample * EXAMPLE_COMMON_REPEATS + rest)
    listed = _numbered(rng, common * repeats[0] + others * repeats[1])
    lead = "Answer: the 10 words that occur most often in the list are:"
    content = f"{_ask_common(example)}\n{lead}{_target(sample)}\n\n{_ask_common(listed)}"
    return Draft(content, lead, tuple(common), _target(common))


def _others(rng: random.Random, count: int, taken: set[str]) -> list[str]:
    pool = [word for word in hay.real_words() if word not in taken]
    rng.shuffle(pool)
    laps = -(-count // len(pool))
    return [w + (str(lap) if lap else "") for lap in range(laps) for w in pool][:count]


def _numbered(rng: random.Random, words: list[str]) -> str:
    rng.shuffle(words)
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


def _ask_common(listed: str) -> str:
    return (
        "Here is a numbered list of words. Some of them occur more often than others: memorize "
        f"those.\n{listed}\nQuestion: which 10 words occur most often in the list above?"
    )


def _target(words: list[str]) -> str:
    return "".join(f" {i}. {word}" for i, word in enumerate(words, 1))


def compose_frequent(rng: random.Random, size: int, depth: float) -> Draft:
    """Some `4 * size` coded words by a zeta distribution; which three occur most often?"""
    del depth
    total = 4 * size + 60
    words: list[str] = []
    while len(words) <= FREQUENT_WORDS:
        words.append("".join(rng.choices(string.ascii_lowercase, k=CODED_LENGTH)))
    top, text = words[1 : FREQUENT_WORDS + 1], list[str]()
    rank = 1
    while count := int(total * rank**-EXPONENT / RIEMANN_ZETA):
        if rank > len(words):
            words.append("".join(rng.choices(string.ascii_lowercase, k=CODED_LENGTH)))
        text += ["..." if rank == 1 else words[rank - 1]] * count
        rank += 1
    rng.shuffle(text)
    content = (
        "Read the following coded text and count how often each coded word occurs.\n"
        f"{' '.join(text)}\nQuestion: which three coded words occur most often in the text above? "
        "Pass over the dots '...'."
    )
    lead = "Answer: the three coded words that occur most often are:"
    return Draft(content, lead, tuple(top), " " + ", ".join(top))


AGGREGATION_TASKS = (
    GeneratedTask("cwe", compose_common), GeneratedTask("fwe", compose_frequent)
)  # fmt: skip
