"""The common parts of LongBench and InfiniteBench: JSON lines, and texts cut in the middle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import InvalidInput
from ...models.tokens import encode, encode_prompt
from ...records import read_lines
from ..prompts import Metric, Sample, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_SHOWN = 60
"""Characters of a wrong value that an error shows."""

VALUE_KINDS: dict[str, tuple[type, ...]] = {
    "a text": (str,), "a text or a number": (str, int, float)
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One line of a file, whose fields are checked as they are read.

    Attributes:
        where: its file and line.
        fields: what it holds.
    """

    where: str
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """The text of a field.

        Raises:
            InvalidInput: it is missing, or not a text.
        """
        if name not in self.fields:
            raise InvalidInput(f"{self.where} has no field {name}")
        return self._plain(name, self.fields[name], "a text")

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts and numbers of a field: of a list all, else the one; none where it is null.

        Raises:
            InvalidInput: one is neither.
        """
        given = self.fields.get(name)
        listed = given if isinstance(given, list) else [] if given is None else [given]
        return tuple(self._plain(name, one, "a text or a number") for one in listed)

    def refusal(self, name: str, accepted: str) -> InvalidInput:
        """The error for a field that is not what is accepted."""
        shown = repr(self.fields.get(name))
        shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
        return InvalidInput(f"{self.where}: the field {name} is {shown}; accepted: {accepted}")

    def _plain(self, name: str, value: object, kind: str) -> str:
        if not isinstance(value, VALUE_KINDS[kind]) or isinstance(value, bool):
            raise self.refusal(name, kind)
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise self.refusal(name, f"{kind} in Unicode ({error.reason})") from error
        return str(value)


@dataclass(frozen=True)
class Question:
    """The question of one line of a file.

    Attributes:
        before: what comes before the text.
        text: the long text; its middle is left out where the prompt would be too long.
        after: what comes after the text.
        answers: the right ones.
        metric: scores answers.
        max_new_tokens: how much may be written.
        chat: whether the chat template is applied; continuations of examples and of code are not
            a chat.
    """

    before: str
    text: str
    after: str
    answers: tuple[str, ...]
    metric: Metric
    max_new_tokens: int
    chat: bool = True


def read_questions(path: Path, question: Callable[[Record], Question]) -> list[Question]:
    """The questions of a file of JSON lines, one per line: bad lines are found before any runs.

    Raises:
        InvalidInput: a line is not a JSON object, or not what `question` needs; or there is none.
        OSError: the file cannot be read.
    """
    questions: list[Question] = []
    for where, fields in read_lines([path]):
        if not isinstance(fields, dict):
            raise InvalidInput(f"{where} is not a JSON object")
        made = question(Record(where, fields))
        if not made.answers:
            raise InvalidInput(f"{where} is a question without an answer; accepted: at least one")
        questions.append(made)
    if not questions:
        raise InvalidInput(f"{path} holds no records")
    return questions


def choose_questions(questions: list[Question], n: int, seed: int) -> list[Question]:
    """`n` of the questions, the same for a seed, in their order; all when there are fewer."""
    picks = seeded(seed, "records").sample(range(len(questions)), min(n, len(questions)))
    return [questions[i] for i in sorted(picks)]


def sample_of(tokenizer: PreTrainedTokenizerBase, question: Question, length: int) -> Sample:
    """The question as a prompt of at most `length` tokens, answer included.

    Raises:
        InvalidInput: the question does not fit without its text.
    """
    room = length - question.max_new_tokens
    text = list(encode(tokenizer, question.text))
    # What is decoded and encoded again may come out a few tokens longer.
    taken = len(text)
    while True:
        prompt = _prompt(tokenizer, question, text, taken)
        if len(prompt) <= room:
            break
        if taken == 0:
            raise InvalidInput(
                f"length is {length}; a question takes {len(prompt)} tokens without its text"
            )
        taken = max(0, taken - (len(prompt) - room))
    target = encode(tokenizer, f" {question.answers[0]}")[: question.max_new_tokens]
    return Sample(prompt, question.answers, target, question.max_new_tokens, question.metric)


def _prompt(
    tokenizer: PreTrainedTokenizerBase, question: Question, text: list[int], taken: int
) -> tuple[int, ...]:
    body = question.text
    if taken < len(text):
        first = tokenizer.decode(text[: taken - taken // 2])
        last = tokenizer.decode(text[len(text) - taken // 2 :])
        body = f"{first}{last}"
    content = f"{question.before}{body}{question.after}"
    return encode_prompt(tokenizer, content, chat=question.chat).token_ids
