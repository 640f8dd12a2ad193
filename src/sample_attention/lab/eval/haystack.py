"""The text that needles are hidden in, and the parts that needles are made of."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from ..models import reference_text

if TYPE_CHECKING:
    import random

NOISE = ("The sky is blue.", "The grass is green.", "The sun is yellow.", "Here we go.",
         "There and back again.")  # fmt: skip
"""Sentences of a haystack that says nothing, over and over."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words("""
    able bold brave brief bright broad calm clean clear clever cold cool crisp curious damp dark
    deep eager early easy even exact faint fair famous fast fierce fine firm flat free fresh
    gentle giant glad golden grand great happy hasty heavy hidden hollow honest humble icy ideal
    jolly keen kind late lazy light little lively local lone long loud lucky mellow merry mild
    modern modest narrow neat noble odd open pale patient plain polite proud quick quiet rapid
    rare ready rich rough round royal rural sharp shiny short silent simple slim slow smooth
    soft solid spare steady steep still strong sturdy sudden sweet swift tall tame tender thick
    thin tidy tiny tough vast vivid warm wide wild wise young
""")
NOUNS = _words("""
    acorn anchor apple arrow badge barrel basket beacon bell bench bottle branch bridge brook
    bucket button cabin cable candle canoe canvas castle cedar chain chapel circle cliff clock
    cloud coast comet compass copper coral corner cottage cradle creek crown curtain desert
    diamond dragon drum eagle engine falcon feather fence field flame flute forest fountain
    garden glacier glove granite hammer harbor harvest hill honey island jacket jewel kettle
    kite ladder lagoon lantern leaf lemon letter library lion magnet maple market meadow mirror
    mountain needle ocean orchard otter paddle palace parrot pebble pencil pepper piano pillow
    planet pocket prairie quarry rabbit ribbon river robin rocket saddle salmon scarf shadow
    shell silver spoon spring stable station stone storm summit sunset table temple thunder
    ticket tiger timber tower trumpet tunnel valley velvet village violin wagon walnut whistle
    willow window winter
""")


@cache
def real_sentences() -> tuple[str, ...]:
    """The sentences of the real prose, in their order."""
    paragraphs = reference_text("prose").split("\n\n")
    return tuple(s for p in paragraphs for s in re.split(r"(?<=[.:]) +(?=[A-Z\"])", p) if s.strip())


@cache
def real_paragraphs() -> tuple[str, ...]:
    """The paragraphs of the real prose, in their order."""
    return tuple(p.strip() for p in reference_text("prose").split("\n\n") if p.strip())


@cache
def real_words() -> tuple[str, ...]:
    """Thousands of lower-case words that occur in the real code, in alphabetic order."""
    return tuple(sorted(set(re.findall(r"\b[a-z]{4,9}\b", reference_text("code")))))


def passage(rng: random.Random, parts: Sequence[str], count: int) -> list[str]:
    """`count` consecutive parts from a random one on; after the last comes the first."""
    start = rng.randrange(len(parts))
    return [parts[(start + i) % len(parts)] for i in range(count)]


def plant(hay: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> list[str]:
    """Hay with each needle at its depth, from 0 (before all) to 1 (after all), in their order."""
    planted = list(hay)
    for depth, needle in reversed([*zip(depths, needles, strict=True)]):
        planted.insert(round(depth * len(hay)), needle)
    return planted


def random_depths(rng: random.Random, count: int) -> list[float]:
    """Rising depths."""
    return sorted(rng.random() for _ in range(count))


def random_names(rng: random.Random, count: int) -> list[str]:
    """Different keys such as `brave-otter`; beyond all pairs they get a number."""
    pairs = len(ADJECTIVES) * len(NOUNS)
    picks = rng.sample(range(-(-count // pairs) * pairs), count)
    return [_name(pick, pairs) for pick in picks]


def random_numbers(rng: random.Random, count: int) -> list[str]:
    """Different numbers of seven digits."""
    return [str(n) for n in rng.sample(range(10**6, 10**7), count)]


def random_uuids(rng: random.Random, count: int) -> list[str]:
    """UUIDs of version 4."""
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


def _name(pick: int, pairs: int) -> str:
    lap, pair = divmod(pick, pairs)
    adjective, noun = divmod(pair, len(NOUNS))
    return f"{ADJECTIVES[adjective]}-{NOUNS[noun]}" + (f"-{lap}" if lap else "")
