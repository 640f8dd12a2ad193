"""LongBench (arXiv 2308.14508): the English and code data sets, from their public files.

A file `hotpotqa.jsonl` holds lines with `input`, `context`, `answers`, `all_classes` and `dataset`.
Metrics are LongBench's. The instructions are in our own words and texts are cut to the length that
is asked for, so scores compare methods with each other, not with published tables. The similarity
of code is that of `difflib`. Chinese data sets need a word segmenter and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import metrics
from ..prompts import Metric, Sample
from .files import Question, Record, choose_questions, read_questions, sample_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class DataSet:
    """How a data set is asked and scored.

    Attributes:
        metric: of LongBench; `named_class` is given the classes of the record.
        max_new_tokens: LongBench's.
        before: what comes before the text.
        after: what comes after it; `{input}` is the question.
        chat: whether it is a turn of a chat.
        first_line: only the first line of the answer counts.
    """

    metric: Metric
    max_new_tokens: int
    before: str
    after: str
    chat: bool = True
    first_line: bool = False


def _reading(what: str, max_new_tokens: int) -> DataSet:
    before = f"Read {what} and answer the question as briefly as you can.\n\n"
    after = "\n\nAnswer in a few words, without explaining.\n\nQuestion: {input}\nAnswer:"
    return DataSet(metrics.token_f1, max_new_tokens, before, after)


def _summary(what: str, after: str = "\n\nSummarize it on one page.\n\nSummary:") -> DataSet:
    return DataSet(metrics.rouge_l, 512, f"Here is {what}.\n\n", after)


def _examples(metric: Metric, max_new_tokens: int, before: str) -> DataSet:
    return DataSet(metric, max_new_tokens, before, "\n\n{input}", chat=False, first_line=True)


DATA_SETS = {
    "narrativeqa": _reading("the story", 128),
    "qasper": _reading("the scientific article", 128),
    "multifieldqa_en": _reading("the text", 64),
    "hotpotqa": _reading("the passages", 32),
    "2wikimqa": _reading("the passages", 32),
    "musique": _reading("the passages", 32),
    "gov_report": _summary("a report by a government agency"),
    "qmsum": _summary("the transcript of a meeting", "\n\nIn a few sentences: {input}\nAnswer:"),
    "multi_news": _summary("several news articles on one event"),
    "trec": _examples(metrics.named_class, 64, "Name the type of each question.\n\n"),
    "triviaqa": _examples(metrics.token_f1, 32, "Answer from the passage, as in the examples.\n\n"),
    "samsum": _examples(metrics.rouge_l, 128, "Summarize the dialogue, as in the examples.\n\n"),
    "passage_count": DataSet(
        metrics.right_numbers, 32, "Some of these paragraphs are repeated.\n\n",
        "\n\nHow many different paragraphs are there? Give the number alone.\nAnswer:",
    ),
    "passage_retrieval_en": DataSet(
        metrics.paragraph_number, 32, "Here are 30 paragraphs of an encyclopedia.\n\n",
        "\n\nWhich paragraph is this a summary of?\n\n{input}\n\nAnswer as in 'Paragraph 1'."
        "\nAnswer: Paragraph",
    ),
    "lcc": DataSet(metrics.code_similarity, 64, "Complete the code.\n", "", chat=False),
    "repobench-p": DataSet(metrics.code_similarity, 64, "Complete the code.\n", "{input}",
                           chat=False),
}  # fmt: skip
"""The data sets that are accepted; those of LongBench-E have `_e` at their ends."""


@dataclass(frozen=True)
class LongBenchTask:
    """Questions of one file.

    Attributes:
        path: the file.
    """

    path: Path

    @property
    def name(self) -> str:
        """As records state it."""
        return f"longbench_{self.path.stem}"

    def samples(
        self, tokenizer: PreTrainedTokenizerBase, length: int, n: int, seed: int
    ) -> list[Sample]:
        """`n` questions of the file, cut to `length` tokens.

        Raises:
            InvalidInput: not such a file, or a data set that is not accepted.
            OSError: the file cannot be read.
        """
        questions = choose_questions(read_questions(self.path, _question), n, seed)
        return [sample_of(tokenizer, question, length) for question in questions]


def _question(record: Record) -> Question:
    name = record.text("dataset").removesuffix("_e")
    if name not in DATA_SETS:
        raise record.refusal("dataset", ", ".join(DATA_SETS))
    data = DATA_SETS[name]
    metric = data.metric
    if metric is metrics.named_class:
        classes = record.texts("all_classes")
        if not classes:
            raise record.refusal("all_classes", "the names of all classes")
        metric = partial(metrics.named_class, classes=classes)
    if data.first_line:
        metric = partial(_of_first_line, metric)
    return Question(
        data.before, record.text("context"), data.after.replace("{input}", record.text("input")),
        record.texts("answers"), metric, data.max_new_tokens, data.chat,
    )  # fmt: skip


def _of_first_line(metric: Metric, output: str, answers: tuple[str, ...]) -> float:
    return metric(output.lstrip("\n").split("\n")[0], answers)
