"""Stand-ins for RULER's question answering: made-up facts among real paragraphs.

RULER takes documents and questions of SQuAD (`qa_1`) and HotpotQA (`qa_2`), which cannot be fetched
everywhere. Here every question is generated: one document answers it (`qa_1`), or two have to be
put together (`qa_2`). Generated documents of the same kind are mixed in, and all others are
paragraphs of real text. Scores do not compare with RULER's published ones.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .. import haystack as hay
from ..metrics import contains_any
from ..prompts import Draft
from .generated import GeneratedTask

if TYPE_CHECKING:
    import random

FIRST = (
    "Ada", "Boris", "Clara", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ingrid",
    "Jonas", "Keiko", "Lars", "Mira", "Nadia", "Otto",
)  # fmt: skip
LAST = (
    "Almeida", "Brandt", "Castell", "Dorsey", "Eklund", "Falk", "Gruber", "Hale", "Ivers",
    "Jansen", "Kovac", "Lund", "Moreau",
)  # fmt: skip
TOWNS = (
    "Ashby", "Brenholt", "Calder", "Dunmore", "Eastvale", "Fernwick", "Glenrock",
    "Harwick", "Ivybridge", "Kelso",
)  # fmt: skip
PLACES = (
    "observatory", "library", "theater", "museum", "bakery", "shipyard", "printing-house",
    "clinic",
)  # fmt: skip
OTHER_SUBJECTS = 4
"""Generated documents about subjects that are not asked for."""


def compose_question(rng: random.Random, size: int, depth: float, *, hops: int) -> Draft:
    """A question on documents, of which `size` are real paragraphs."""
    del depth
    count = OTHER_SUBJECTS + 1
    founders = [f"{first} {last}" for first, last in zip(
        rng.sample(FIRST, count), rng.sample(LAST, count), strict=True)]  # fmt: skip
    subjects = [f"{name.replace('-', ' ').title()} {rng.choice(PLACES)}"
                for name in hay.random_names(rng, count)]  # fmt: skip
    towns, homes = rng.sample(TOWNS, count), rng.sample(TOWNS, count)
    years = rng.sample(range(1820, 1990), count)
    made = [_about(*named) for named in zip(subjects, founders, towns, years, strict=True)]
    if hops > 1:
        made += [_life(*named) for named in zip(founders, homes, years, strict=True)]
    order = rng.sample(range(len(made)), len(made))
    depths = hay.random_depths(rng, len(made))
    real = hay.passage(rng, hay.real_paragraphs(), size)
    documents = hay.plant(real, [made[i] for i in order], depths)
    text = "\n\n".join(f"Document {i}:\n{words}" for i, words in enumerate(documents, 1))
    asked, answer = f"Who founded the {subjects[0]}?", founders[0]
    if hops > 1:
        asked = f"In which town was the founder of the {subjects[0]} born?"
        answer = homes[0]
    instruction = "Answer the question from the documents. Give the answer and nothing else."
    content = f"{instruction}\n\n{text}\n\n{instruction}\n\nQuestion: {asked}"
    return Draft(content, "Answer:", (answer,), f" {answer}")


def _about(subject: str, founder: str, town: str, year: int) -> str:
    return (
        f"The {subject} stands near the old market of {town}. It was founded in {year} by "
        f"{founder}, who led it for many years. Visitors come mostly in summer."
    )


def _life(person: str, home: str, year: int) -> str:
    return (
        f"{person} was born in {home} in {year - 34} as the child of a teacher, and took up "
        "the work of a lifetime after long travels."
    )


QUESTION_TASKS = tuple(
    GeneratedTask(f"qa_{hops}", partial(compose_question, hops=hops), contains_any)
    for hops in (1, 2)
)
