"""What LongBench and InfiniteBench have in common: JSON lines, and texts cut in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InvalidInput
from ...records import read_lines
from ..prompts import Metric, Sample, as_chat, encode_text, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What one line of a file asks.

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


def read_questions(path: Path, needed: tuple[str, ...]) -> list[Record]:
    """The records of a file of JSON lines.

    Raises:
        InvalidInput: a line is not a JSON object with the fields that are `needed`, or there is
            none.
        OSError: the file cannot be read.
    """
    found: list[Record] = []
    for where, record in read_lines([path]):
        missing = [x for x in needed if not isinstance(record, dict) or x not in record]
        if missing:
            raise InvalidInput(
                f"{where} has no field {missing[0]}; accepted: an object with {', '.join(needed)}"
            )
        found.append(record)
    if not found:
        raise InvalidInput(f"{path} holds no records")
    return found


def choose_records(records: list[Record], n: int, seed: int) -> list[Record]:
    """`n` of the records, the same for a seed, in their order; all when there are fewer."""
    picks = seeded(seed, "records").sample(range(len(records)), min(n, len(records)))
    return [records[i] for i in sorted(picks)]


def sample_of(tokenizer: PreTrainedTokenizerBase, question: Question, length: int) -> Sample:
    """The question as a prompt of at most `length` tokens, answer included.

    Raises:
        InvalidInput: the question does not fit without its text.
    """
    if not question.answers:
        raise InvalidInput("a question without an answer; accepted: at least one per question")
    room = length - question.max_new_tokens
    text = list(encode_text(tokenizer, question.text))
    # What is decoded and encoded again may come out a few tokens longer.
    kept = len(text)
    while True:
        prompt = _prompt(tokenizer, question, text, kept)
        if len(prompt) <= room:
            break
        if kept == 0:
            raise InvalidInput(
                f"length is {length}; a question takes {len(prompt)} tokens without its text"
            )
        kept = max(0, kept - (len(prompt) - room))
    target = encode_text(tokenizer, f" {question.answers[0]}")[: question.max_new_tokens]
    return Sample(prompt, question.answers, target, question.max_new_tokens, question.metric)


def _prompt(
    tokenizer: PreTrainedTokenizerBase, question: Question, text: list[int], kept: int
) -> tuple[int, ...]:
    body = question.text
    if kept < len(text):
        first = tokenizer.decode(text[: kept - kept // 2])
        last = tokenizer.decode(text[len(text) - kept // 2 :])
        body = f"{first}{last}"
    content = f"{question.before}{body}{question.after}"
    return encode_text(tokenizer, as_chat(tokenizer, content, "") if question.chat else content)
