"""LongBench and InfiniteBench: small files in their formats, read, asked and scored."""

import json

import pytest

from sample_attention.errors import InvalidInput
from sample_attention.lab.eval.tasks import parse_tasks
from sample_attention.lab.eval.tasks.infinitebench import KINDS
from sample_attention.lab.eval.tasks.longbench import DATA_SETS
from sample_attention.lab.models import reference_text

LENGTH = 2048
TEXT = f"FIRST words. {reference_text()[:40_000]} LAST words."


@pytest.fixture
def file_of(tmp_path):
    """Writes records as JSON lines and returns the task of the file."""

    def write(kind, name, *records):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(r) for r in records) + "\n\n", "utf-8")
        (task,) = parse_tasks([f"{kind}:{path}"])
        return task

    return write


def longbench(dataset, answer="the answer", **fields):
    return {
        "input": "What is asked?", "context": TEXT, "answers": [answer], "length": 9000,
        "dataset": dataset, "language": "en", "all_classes": None, "_id": "0", **fields,
    }  # fmt: skip


ANSWERS = {"passage_count": "12", "passage_retrieval_en": "Paragraph 7"}


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_longbench(file_of, tokenizer, dataset):
    answer = ANSWERS.get(dataset, "Food")
    record = longbench(dataset, answer, all_classes=["Food", "Animal"])
    task = file_of("longbench", dataset, record)
    (sample,) = task.samples(tokenizer, LENGTH, 3, 0)
    text = tokenizer.decode(sample.token_ids)
    assert len(sample.token_ids) + sample.max_new_tokens <= LENGTH
    assert len(sample.token_ids) > LENGTH - sample.max_new_tokens - 50
    assert "FIRST words" in text  # the middle is left out
    assert "LAST words" in text
    assert ("What is asked?" in text) == ("{input}" in DATA_SETS[dataset].after)
    assert task.name == f"longbench_{dataset}"
    assert sample.score(f"{answer}\n") == 1
    assert sample.score("nothing") < 0.5


def test_examples_are_scored_by_their_first_line(file_of, tokenizer):
    task = file_of("longbench", "triviaqa", longbench("triviaqa_e", "Paris"))
    (sample,) = task.samples(tokenizer, LENGTH, 1, 0)
    assert sample.score("\nParis\nQuestion: more words") == 1


def test_chinese_longbench_is_refused(file_of, tokenizer):
    task = file_of("longbench", "dureader", longbench("dureader"))
    with pytest.raises(
        InvalidInput,
        match=r"dureader.jsonl:1: the field dataset is 'dureader'; accepted: narrativeqa",
    ):
        task.samples(tokenizer, LENGTH, 1, 0)


OPTIONS = ["run", "walk", "swim", "fly"]
INFINITE = {
    "passkey": (["71432"], " 71432."), "number_string": (["717717"], "717717"),
    "kv_retrieval": (["ab-12"], '"ab-12"'), "math_find": ([41.0], "41"),
    "math_calc": ([3, -2, 7], "3, -2, 7"), "code_run": ([-12], "The value is -12."),
    "longbook_choice_eng": (["swim"], "C. swim"), "code_debug": (["walk"], "B"),
    "longdialogue_qa_eng": (["ANNA", "Anna"], "Anna"), "longbook_qa_chn": (["北京"], "北京"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_infinitebench(file_of, tokenizer, name):
    answer, output = INFINITE.get(name, (["a red house"], "a red house"))
    record = {"id": 1, "context": TEXT, "input": "What is asked?", "answer": answer,
              "options": OPTIONS}  # fmt: skip
    (sample,) = file_of("infinitebench", name, record).samples(tokenizer, LENGTH, 1, 0)
    text = tokenizer.decode(sample.token_ids)
    assert len(sample.token_ids) + sample.max_new_tokens <= LENGTH
    assert ("C. swim" in text) == ("{options}" in KINDS[name].after)
    assert sample.score(output) == 1
    assert sample.score("unsaid") == 0


def test_files_of_infinitebench_are_named_after_tasks(file_of, tokenizer):
    task = file_of("infinitebench", "other", {})
    with pytest.raises(InvalidInput, match=r"'other.jsonl' is not a file of InfiniteBench"):
        task.samples(tokenizer, LENGTH, 1, 0)


def test_questions_are_chosen_by_the_seed(file_of, tokenizer):
    records = [longbench("hotpotqa", f"answer {i}", context="short") for i in range(20)]
    task = file_of("longbench", "hotpotqa", *records)
    first, again, other = (
        [x.answers for x in task.samples(tokenizer, LENGTH, 5, seed)] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(set(first)) == 5
    assert len(task.samples(tokenizer, LENGTH, 100, 0)) == 20


def infinitebench(**fields):
    return {"context": TEXT, "input": "What is asked?", "answer": "a red house", **fields}


RECORDS = {
    ("longbench", "hotpotqa"): longbench("hotpotqa"),
    ("infinitebench", "longbook_qa_eng"): infinitebench(),
}
ANSWERS_OF = {"longbench": "answers", "infinitebench": "answer"}
LONE_SURROGATE = "\ud800"


@pytest.mark.parametrize(("kind", "name"), RECORDS)
@pytest.mark.parametrize("given", ["Paris", ["Paris"], ["Paris", "Lyon"], 1871, [1871]])
def test_a_text_is_one_answer(file_of, tokenizer, kind, name, given):
    record = RECORDS[kind, name] | {ANSWERS_OF[kind]: given}
    (sample,) = file_of(kind, name, record).samples(tokenizer, LENGTH, 1, 0)
    assert sample.answers == tuple(map(str, given if isinstance(given, list) else [given]))


@pytest.mark.parametrize(("kind", "name"), RECORDS)
@pytest.mark.parametrize("value", [None, 7, True, ["a"], {"a": 1}, LONE_SURROGATE])
@pytest.mark.parametrize("field", ["context", "input", "dataset"])
def test_texts_that_are_none_are_refused(file_of, tokenizer, kind, name, field, value):
    if field not in RECORDS[kind, name]:
        return
    task = file_of(kind, name, RECORDS[kind, name], RECORDS[kind, name] | {field: value})
    with pytest.raises(InvalidInput, match=rf"{name}.jsonl:2: the field {field} is "):
        task.samples(tokenizer, LENGTH, 1, 0)


@pytest.mark.parametrize(("kind", "name"), RECORDS)
@pytest.mark.parametrize("value", [True, {"a": 1}, [None], [["a"]], ["a", False], LONE_SURROGATE])
def test_answers_that_are_none_are_refused(file_of, tokenizer, kind, name, value):
    field = ANSWERS_OF[kind]
    task = file_of(kind, name, RECORDS[kind, name] | {field: value})
    with pytest.raises(InvalidInput, match=rf"{name}.jsonl:1: the field {field} is "):
        task.samples(tokenizer, LENGTH, 1, 0)


@pytest.mark.parametrize(("kind", "name"), RECORDS)
@pytest.mark.parametrize("value", [None, []])
def test_questions_without_an_answer_are_refused(file_of, tokenizer, kind, name, value):
    task = file_of(kind, name, RECORDS[kind, name] | {ANSWERS_OF[kind]: value})
    with pytest.raises(InvalidInput, match=rf"{name}.jsonl:1 is a question without an answer"):
        task.samples(tokenizer, LENGTH, 1, 0)


@pytest.mark.parametrize(("kind", "name"), RECORDS)
def test_every_field_is_needed(file_of, tokenizer, kind, name):
    for field in ("context", "input"):
        record = {key: value for key, value in RECORDS[kind, name].items() if key != field}
        with pytest.raises(InvalidInput, match=rf"{name}.jsonl:1 has no field {field}"):
            file_of(kind, name, record).samples(tokenizer, LENGTH, 1, 0)
    with pytest.raises(InvalidInput, match=rf"{name}.jsonl:1 is not a JSON object"):
        file_of(kind, name, [1]).samples(tokenizer, LENGTH, 1, 0)


@pytest.mark.parametrize(
    ("name", "fields", "complaint"),
    [
        ("passkey", {"answer": "none"}, "accepted: a number"),
        ("code_debug", {"answer": "fly", "options": ["run"]}, "accepted: one of the options"),
        ("code_debug", {"answer": "A", "options": [None]}, "the field options is"),
    ],
)
def test_answers_that_no_output_can_match_are_refused(file_of, tokenizer, name, fields, complaint):
    task = file_of("infinitebench", name, infinitebench(**fields))
    with pytest.raises(InvalidInput, match=complaint):
        task.samples(tokenizer, LENGTH, 1, 0)


@pytest.mark.parametrize("classes", [None, []])
def test_classes_are_needed_where_they_are_scored(file_of, tokenizer, classes):
    task = file_of("longbench", "trec", longbench("trec", all_classes=classes))
    with pytest.raises(InvalidInput, match=r"trec.jsonl:1: the field all_classes is"):
        task.samples(tokenizer, LENGTH, 1, 0)


def test_bad_files_are_refused(tmp_path, tokenizer):
    path = tmp_path / "qasper.jsonl"
    for text, complaint in (("", "holds no records"), ("{", r"qasper.jsonl:1 is not JSON")):
        path.write_text(text, "utf-8")
        (task,) = parse_tasks([f"longbench:{path}"])
        with pytest.raises(InvalidInput, match=complaint):
            task.samples(tokenizer, LENGTH, 1, 0)


def test_a_question_that_does_not_fit_is_refused(file_of, tokenizer):
    record = longbench("qasper", input="word " * 3000)
    with pytest.raises(InvalidInput, match="tokens without its text"):
        file_of("longbench", "qasper", record).samples(tokenizer, LENGTH, 1, 0)
