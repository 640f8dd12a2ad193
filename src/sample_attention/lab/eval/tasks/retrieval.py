"""Needles in haystacks: the grid of depths and lengths, and RULER's eight retrieval tasks.

RULER (arXiv 2404.06654) varies what is hidden: `One of the special magic VALUES for KEY is: VALUE.`

| task              | haystack  | keys  | values  | needles                                     |
|-------------------|-----------|-------|---------|---------------------------------------------|
| `niah_single_1`   | noise     | words | numbers | 1                                           |
| `niah_single_2`   | real text | words | numbers | 1                                           |
| `niah_single_3`   | real text | words | UUIDs   | 1                                           |
| `niah_multikey_1` | real text | words | numbers | 4 keys, 1 asked for                         |
| `niah_multikey_2` | needles   | words | numbers | every line is one                           |
| `niah_multikey_3` | needles   | UUIDs | UUIDs   | every line is one                           |
| `niah_multivalue` | real text | words | numbers | 1 key with 4 values                         |
| `niah_multiquery` | real text | words | numbers | 4 keys, all asked for                       |

The wording is ours, and real text is the Python language reference instead of essays.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import haystack as hay
from ..prompts import Draft
from .generated import GeneratedTask

Draw = Callable[[random.Random, int], list[str]]

REQUEST = (
    "The following text hides {hidden}. Memorize the {kind}: there will be a question afterwards."
    "\n\n{text}\n\nWhat {verb} the special magic {kind} for {keys} in the text above?"
)
LEAD = "The special magic {kind} for {keys} in the text {verb}"


@dataclass(frozen=True)
class Needles:
    """The hidden values, and their places.

    Attributes:
        haystack: `real`, `noise` or `needles` (lines like the one that is asked for).
        keys: draws keys.
        values: draws values.
        kind: what the values are called.
        num_keys: needles with keys of their own.
        num_values: values of each key.
        num_asked: keys that the question asks for.
        placed: the first needle stands at the depth that is given, not at a random one.
    """

    haystack: str = "real"
    keys: Draw = hay.random_names
    values: Draw = hay.random_numbers
    kind: str = "number"
    num_keys: int = 1
    num_values: int = 1
    num_asked: int = 1
    placed: bool = False

    def __call__(self, rng: random.Random, size: int, depth: float) -> Draft:
        """A prompt with `size` sentences or lines of hay."""
        count = self.num_keys * self.num_values
        keys, values = self.keys(rng, self.num_keys), self.values(rng, count)
        asked = rng.sample(range(self.num_keys), self.num_asked)
        depths = hay.random_depths(rng, count) if not self.placed else [depth]
        owners = [key for key in keys for _ in range(self.num_values)]
        needles = [self._line(*pair) for pair in zip(owners, values, strict=True)]
        order = rng.sample(range(count), count)
        text = hay.plant(self._hay(rng, size, keys), [needles[i] for i in order], depths)
        separator = " " if self.haystack == "real" else "\n"
        right = [values[i] for a in asked for i in order if owners[i] == keys[a]]
        return self._ask(separator.join(text), [keys[a] for a in asked], right)

    def _line(self, key: str, value: str) -> str:
        return f"One of the special magic {self.kind}s for {key} is: {value}."

    def _hay(self, rng: random.Random, size: int, taken: Sequence[str]) -> list[str]:
        if self.haystack == "needles":
            others = [key for key in self.keys(rng, size + len(taken)) if key not in taken]
            return [self._line(*pair) for pair in zip(others, self.values(rng, size), strict=False)]
        if self.haystack == "noise":
            return [" ".join(hay.NOISE)] * size
        return hay.passage(rng, hay.real_sentences(), size)

    def _ask(self, text: str, keys: Sequence[str], values: Sequence[str]) -> Draft:
        many = len(values) > 1
        words = {"kind": self.kind + "s" * many, "verb": "are" if many else "is",
                 "keys": _listed(keys)}  # fmt: skip
        hidden = f"some special magic {self.kind}s" if many else f"a special magic {self.kind}"
        content = REQUEST.format(text=text, hidden=hidden, **words)
        return Draft(content, LEAD.format(**words), tuple(values), f" {_listed(values)}.")


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, and {words[-1]}"


def _task(name: str, needles: Needles) -> GeneratedTask:
    return GeneratedTask(name, needles, placed=needles.placed)


RETRIEVAL_TASKS = (
    _task("needle", Needles(placed=True)),
    _task("niah_single_1", Needles("noise")),
    _task("niah_single_2", Needles()),
    _task("niah_single_3", Needles(values=hay.random_uuids, kind="uuid")),
    _task("niah_multikey_1", Needles(num_keys=4)),
    _task("niah_multikey_2", Needles("needles")),
    _task("niah_multikey_3", Needles("needles", hay.random_uuids, hay.random_uuids, "uuid")),
    _task("niah_multivalue", Needles(num_values=4)),
    _task("niah_multiquery", Needles(num_keys=4, num_asked=4)),
)
"""`needle` is the grid: the same as `niah_single_2`, at the depths that samples are spread over."""
