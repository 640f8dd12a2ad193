"""InfiniteBench (arXiv 2402.13718): its tasks, from their public files.

A file `passkey.jsonl` is named after its task and holds lines with `context`, `input`, `answer` and
`options`. Metrics are InfiniteBench's, apart from the summary's ROUGE-L, which here takes a text as
one sequence. The instructions are in our own words and texts are cut to the length that is asked
for, so scores compare methods with each other, not with published tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import InvalidInput
from .. import metrics
from ..prompts import Metric, Sample
from .files import Question, Record, choose_questions, read_questions, sample_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LETTERS = "ABCD"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Kind:
    """How a task is asked and scored.

    Attributes:
        metric: of InfiniteBench.
        max_new_tokens: of InfiniteBench, where that is at most a few hundred.
        before: what comes before the text.
        after: what comes after it; `{input}` is the question, `{options}` are the options.
    """

    metric: Metric
    max_new_tokens: int
    before: str
    after: str = "\n\n{input}"


CHOICE = "\n\n{input}\n{options}\n\nAnswer with the letter of the right option alone.\nAnswer:"
HIDDEN = "One important fact is hidden in a lot of irrelevant text. Find it and memorize it.\n\n"
KINDS = {
    "passkey": Kind(metrics.first_number, 6, HIDDEN, "\n\n{input}\n\nThe pass key is"),
    "number_string": Kind(
        metrics.first_number, 12, HIDDEN, "\n\n{input}\n\nThe sequence of digits is"
    ),
    "kv_retrieval": Kind(metrics.contains_word, 50, "Find the value of a key in this object.\n\n"),
    "longbook_qa_eng": Kind(
        metrics.token_f1, 40, "Read the book.\n\n",
        "\n\nAnswer as briefly as you can.\nQuestion: {input}\nAnswer:",
    ),
    "longbook_qa_chn": Kind(
        metrics.character_f1, 40, "请阅读这本书。\n\n", "\n\n请简短回答这个问题。\n{input}\n"
    ),
    "longbook_choice_eng": Kind(metrics.option_letter, 40, "Read the book.\n\n", CHOICE),
    "longbook_sum_eng": Kind(metrics.rouge_l, 1200, "Read the book.\n\n",
                             "\n\nSummarize the book.\n\nSummary:"),
    "longdialogue_qa_eng": Kind(
        metrics.contains_word, 40, "In this script one name is replaced by $$MASK$$.\n\n",
        "\n\nWhose name is it most likely? Give the name alone.\nName:",
    ),
    "math_find": Kind(metrics.first_number, 12, "Here is a list of numbers.\n\n"),
    "math_calc": Kind(metrics.leading_numbers, 512, "Give all intermediate results.\n\n",
                      "\n\nThe results, from left to right:"),
    "code_run": Kind(metrics.last_number, 12, "Here are functions in Python.\n\n",
                     "\n\n{input}\n\nThe return value is"),
    "code_debug": Kind(metrics.option_letter, 5, "One of these functions has an obvious error.\n\n",
                       CHOICE),
}  # fmt: skip
"""The tasks, each with the name of its file."""


@dataclass(frozen=True)
class InfiniteBenchTask:
    """Questions of one file.

    Attributes:
        path: the file.
    """

    path: Path

    @property
    def name(self) -> str:
        """As records state it."""
        return f"infinitebench_{self.path.stem}"

    def samples(
        self, tokenizer: PreTrainedTokenizerBase, length: int, n: int, seed: int
    ) -> list[Sample]:
        """`n` questions of the file, cut to `length` tokens.

        Raises:
            InvalidInput: not such a file, or not named after a task.
            OSError: the file cannot be read.
        """
        if self.path.stem not in KINDS:
            raise InvalidInput(
                f"'{self.path.name}' is not a file of InfiniteBench; accepted: "
                f"{', '.join(f'{name}.jsonl' for name in KINDS)}"
            )
        question = partial(_question, KINDS[self.path.stem])
        questions = choose_questions(read_questions(self.path, question), n, seed)
        return [sample_of(tokenizer, one, length) for one in questions]


def _question(kind: Kind, record: Record) -> Question:
    options = record.texts("options")
    listed = "\n".join(f"{letter}. {x}" for letter, x in zip(LETTERS, options, strict=False))
    after = kind.after.replace("{options}", listed).replace("{input}", record.text("input"))
    answers = tuple(re.sub(r"\.0$", "", answer) for answer in record.texts("answer"))
    if kind.metric is metrics.option_letter:
        answers = _letters(record, answers, options)
    if kind.metric is metrics.first_number and not all(map(NUMBER.fullmatch, answers)):
        raise record.refusal("answer", "a number")
    text = record.text("context")
    return Question(kind.before, text, after, answers, kind.metric, kind.max_new_tokens)


def _letters(record: Record, answers: tuple[str, ...], options: tuple[str, ...]) -> tuple[str, ...]:
    """Right options by letter: files give their text, or the letter itself."""
    listed = options[: len(LETTERS)]
    letters = [LETTERS[listed.index(a)] if a in listed else a for a in answers]
    known = tuple(letter for letter in letters if letter in tuple(LETTERS))
    if answers and not known:
        raise record.refusal("answer", "one of the options, or its letter from A to D")
    return known
