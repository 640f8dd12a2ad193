"""RULER's variable tracking: a chain of assignments in noise; which variables hold the value?"""

from __future__ import annotations

import string
from itertools import pairwise
from typing import TYPE_CHECKING

from .. import haystack as hay
from ..prompts import Draft
from .generated import GeneratedTask

if TYPE_CHECKING:
    import random

HOPS = 4
NAME_LENGTH = 5
EXAMPLE_SIZE = 5
"""Lines of noise in the worked example that comes first, as in RULER."""


def compose_tracking(rng: random.Random, size: int, depth: float) -> Draft:
    """A worked example, then one chain of five variables in `size` lines of noise."""
    del depth
    example, example_names = _question(rng, EXAMPLE_SIZE)
    names, value, depths = _chain(rng)
    content, lead = _ask(names, value, depths, size)
    answer = " " + ", ".join(names)
    worked = f"{example} {', '.join(example_names)}"
    return Draft(f"{worked}\n\n{content}", lead, tuple(names), answer)


def _question(rng: random.Random, size: int) -> tuple[str, list[str]]:
    names, value, depths = _chain(rng)
    return "\n".join(_ask(names, value, depths, size)), names


def _chain(rng: random.Random) -> tuple[list[str], str, list[float]]:
    names: list[str] = []
    while len(names) <= HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=NAME_LENGTH))
        names += [name] * (name not in names)
    return names, str(rng.randrange(10_000, 100_000)), hay.random_depths(rng, HOPS + 1)


def _ask(names: list[str], value: str, depths: list[float], size: int) -> tuple[str, str]:
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {b} = VAR {a}" for a, b in pairwise(names)]
    text = "\n".join(hay.plant([" ".join(hay.NOISE)] * size, chain, depths))
    content = (
        "The following text hides assignments of variables that form a chain. Follow the chain.\n\n"
        f"{text}\n\nQuestion: which variables hold the value {value}, directly or through others?"
    )
    lead = f"Answer: {len(names)} variables hold the value {value}. They are:"
    return content, lead


TRACKING_TASKS = (GeneratedTask("vt", compose_tracking),)
