"""What a model reads begins with what its tokenizer puts before a text, whatever the way in."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from sample_attention.cli.setup import tokenized
from sample_attention.errors import InvalidInput
from sample_attention.lab.eval.tasks import GENERATED_TASKS, parse_tasks
from sample_attention.lab.eval.tasks.texts import QUOTING_TASKS, TEXT_TASKS
from sample_attention.lab.models import LoadedModel, needle_prompt, text_tokens
from sample_attention.lab.models.tokens import encode_passage, encode_prompt, start_tokens
from sample_attention.lab.tuning.passages import split_passages

LENGTH = 1200
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}answer:"
)
FRONTS = {"none": "", "bos": "<start> ", "two": "<start> <end> "}
BEHIND = {"nothing": "", "eos": " <end>"}


@pytest.fixture(scope="module", params=FRONTS)
def front(request):
    return FRONTS[request.param]


@pytest.fixture(scope="module", params=BEHIND)
def begun(request, tokenizer, front):
    """A tokenizer that puts special tokens before a text, or behind it."""
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"bos_token": "<start>"})
    names = [(name, changed.convert_tokens_to_ids(name)) for name in ("<start>", "<end>")]
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{front}$A{BEHIND[request.param]}", special_tokens=names
    )
    return changed


@dataclass(frozen=True)
class Place:
    """What a way in needs: a tokenizer, a model that is loaded, a folder."""

    tokenizer: PreTrainedTokenizerBase
    loaded: LoadedModel
    path: Path


def cli(at):
    given = LoadedModel(at.loaded.model, at.tokenizer, at.loaded.context_length, "tiny")
    return [tuple(tokenized(given, "a prompt of a user", None)[0].tolist())]


def bench(at):
    given = LoadedModel(at.loaded.model, at.tokenizer, at.loaded.context_length, "tiny")
    return [tuple(row) for row in text_tokens(given, "prose", 3, 300).tolist()]


def needle(at):
    return [needle_prompt(at.tokenizer, LENGTH).token_ids]


def tuning(at):
    first, second = split_passages(at.tokenizer, ["prose", "code"], 400, 2, 20)
    return first + second


def generated(at):
    found = [task.samples(at.tokenizer, LENGTH, 1, 0) for task in GENERATED_TASKS]
    return [sample.token_ids for samples in found for sample in samples]


def texts(at):
    found = [task.passages(at.tokenizer, LENGTH, 1, 0) for task in (*TEXT_TASKS, *QUOTING_TASKS)]
    return [ids for passages in found for ids in passages]


def files(at):
    found = []
    for kind, name in (
        ("longbench", "hotpotqa"), ("longbench", "lcc"), ("infinitebench", "passkey")
    ):  # fmt: skip
        record = {"dataset": name, "context": "c " * 3000, "input": "q", "answers": "7",
                  "answer": 7}  # fmt: skip
        (at.path / f"{name}.jsonl").write_text(json.dumps(record), "utf-8")
        (task,) = parse_tasks([f"{kind}:{at.path / name}.jsonl"])
        found += [sample.token_ids for sample in task.samples(at.tokenizer, LENGTH, 1, 0)]
    return found


WAYS = (cli, bench, needle, tuning, generated, texts, files)
PLAIN = (bench, tuning, texts)
"""Ways that read a text as it is, without a turn of a user."""


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_in_begin_alike(way, begun, front, loaded, tmp_path):
    expected = tuple(begun.convert_tokens_to_ids(front.split()))
    special = set(begun.all_special_ids)
    for ids in way(Place(begun, loaded, tmp_path)):
        assert ids[: len(expected)] == expected
        assert not special & set(ids[len(expected) :])


@pytest.mark.parametrize("way", [way for way in WAYS if way not in PLAIN])
def test_a_chat_template_writes_its_own(way, begun, loaded, tmp_path):
    chatting = copy.deepcopy(begun)
    chatting.chat_template = TEMPLATE
    for ids in way(Place(chatting, loaded, tmp_path)):
        assert ids[0] == begun.bos_token_id or way is files  # of files some are no chats
        assert ids.count(begun.bos_token_id) <= 1


def test_lengths_are_kept(begun, loaded, tmp_path):
    for way, length in ((bench, 300), (tuning, 400), (texts, LENGTH)):
        assert {len(ids) for ids in way(Place(begun, loaded, tmp_path))} == {length}
    assert len(encode_passage(begun, "word " * 400, 100)) == 100


def test_a_prompt_is_what_the_tokenizer_makes_of_its_text(begun):
    whole = tuple(begun("some words")["input_ids"])
    assert whole[: len(start_tokens(begun))] == start_tokens(begun)
    assert whole[: len(encode_prompt(begun, "some words").token_ids)] == (
        encode_prompt(begun, "some words").token_ids
    )


@pytest.mark.parametrize("way", [way for way in WAYS if way not in PLAIN])
@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ messages[7].content }}", "{% if %}"],
)
def test_a_template_that_cannot_be_applied_is_named(way, template, tokenizer, loaded, tmp_path):
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    with pytest.raises(InvalidInput, match=r"chat template .* cannot be applied"):
        way(Place(broken, loaded, tmp_path))
