"""Scores of what a model wrote, in [0, 1], as the benchmarks define them.

| benchmark     | metrics                                                                      |
|---------------|------------------------------------------------------------------------------|
| RULER         | `contains_all`, `contains_any`                                               |
| BABILong      | `one_label`                                                                  |
| LongBench     | `token_f1`, `rouge_l`, `right_numbers`, `paragraph_number`, `named_class`,   |
|               | `code_similarity`                                                            |
| InfiniteBench | `first_number`, `contains_word`, `option_letter`, `last_number`,             |
|               | `leading_numbers`, `character_f1`, `token_f1`, `rouge_l`                     |

Where there are several right answers, the best match counts. `rouge_l` is plain: LongBench's own
takes each sentence once, and gives a text that repeats a right one over and over 1.00.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

Answers = tuple[str, ...]


def contains_all(output: str, answers: Answers) -> float:
    """The share of the answers that occur in the output, upper and lower case alike."""
    return sum(answer.lower() in output.lower() for answer in answers) / len(answers)


def contains_any(output: str, answers: Answers) -> float:
    """1 if one of the answers occurs in the output, upper and lower case alike."""
    return float(any(answer.lower() in output.lower() for answer in answers))


NEVER_FALLING = (contains_all, contains_any)
"""Metrics whose score does not fall, whatever is written behind an output."""


def one_label(output: str, answers: Answers, labels: Sequence[str] = ()) -> float:
    """1 if the first sentence names the answer and none of the other labels."""
    first = re.split(r"[.\n]", output.strip().lower(), maxsplit=1)[0]
    words = set(re.findall(r"[a-z]+", first))
    right = {answer.lower() for answer in answers}
    return float(right <= words and not words & ({x.lower() for x in labels} - right))


def token_f1(output: str, answers: Answers) -> float:
    """F1 of the words, without case, punctuation and articles."""
    return max(_f1(_plain_words(output), _plain_words(answer)) for answer in answers)


def character_f1(output: str, answers: Answers) -> float:
    """F1 of the characters, without punctuation and spaces: for Chinese."""
    return max(_f1(_characters(output), _characters(answer)) for answer in answers)


def rouge_l(output: str, answers: Answers) -> float:
    """F1 of the longest common subsequence of words."""
    return max(_rouge_l(output.lower().split(), answer.lower().split()) for answer in answers)


def right_numbers(output: str, answers: Answers) -> float:
    """The share of the numbers in the output that are the answer."""
    numbers = re.findall(r"\d+", output)
    return max((numbers.count(answer) / len(numbers) for answer in answers if numbers), default=0.0)


def paragraph_number(output: str, answers: Answers) -> float:
    """The share of the numbers in the output that are the number in `Paragraph 7`."""
    return right_numbers(output, tuple(x for a in answers for x in re.findall(r"\d+", a)[:1]))


def named_class(output: str, answers: Answers, classes: Sequence[str] = ()) -> float:
    """1 over the number of classes that the output names, if the right one is among them."""
    named = [name for name in classes if name in output]
    # A class whose name is part of the right one's is not named by naming that.
    named = [name for name in named if not any(name != a and name in a for a in answers)]
    return 1 / len(named) if any(answer in named for answer in answers) else 0.0


def code_similarity(output: str, answers: Answers) -> float:
    """How alike the first line of code is, comments and fences passed over."""
    lines = output.lstrip("\n").split("\n")
    code = next((x for x in lines if not any(mark in x for mark in ("`", "#", "//"))), "")
    return max(SequenceMatcher(None, code, answer, autojunk=False).ratio() for answer in answers)


def first_number(output: str, answers: Answers) -> float:
    """1 if the first number of the output is the answer."""
    number = re.search(r"\d+\.\d+|\d+", output)
    return float(number is not None and any(float(number[0]) == float(a) for a in answers))


def last_number(output: str, answers: Answers) -> float:
    """1 if the last word of the output is the answer."""
    words = re.sub(r"[\n.`'\":]", " ", output).split()
    return float(bool(words) and words[-1] in answers)


def leading_numbers(output: str, answers: Answers) -> float:
    """The share of the answers, in their order, that the output gives before its first mistake."""
    numbers = re.findall(r"-?\d+", output)
    right = 0
    for given, answer in zip(numbers, answers, strict=False):
        if given != answer:
            break
        right += 1
    return right / len(answers)


def contains_word(output: str, answers: Answers) -> float:
    """1 if a word of the output is an answer, upper and lower case alike."""
    words = re.sub(r"[\n:\"'.,?!{}]", " ", output).upper().split()
    return float(any(answer.upper() in words for answer in answers))


def option_letter(output: str, answers: Answers) -> float:
    """1 if the first letter from A to D that stands alone is that of a right option."""
    letter = re.search(r"(?<![A-Za-z])[ABCD](?![A-Za-z])", output)
    return float(letter is not None and letter[0] in answers)


def _plain_words(text: str) -> list[str]:
    plain = "".join(ch for ch in text.lower() if ch not in string.punctuation)
    return re.sub(r"\b(?:a|an|the)\b", " ", plain).split()


def _characters(text: str) -> list[str]:
    return [ch for ch in text.lower() if ch.isalnum()]


def _f1(given: list[str], right: list[str]) -> float:
    return _harmonic((Counter(given) & Counter(right)).total(), len(given), len(right))


def _rouge_l(given: list[str], right: list[str]) -> float:
    row = [0] * (len(right) + 1)
    for word in given:
        above = row
        row = [0]
        for j, other in enumerate(right):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return _harmonic(row[-1], len(given), len(right))


def _harmonic(common: int, given: int, right: int) -> float:
    """F1 from counts: 2 common / (given + right)."""
    return 2 * common / (given + right) if common else 0.0
