"""A sample of the model types of transformers, examined as `make zoo` does, and its record."""

import json
from pathlib import Path

import pytest
import transformers

from sample_attention.integrations import transformers as integration

ROOT = Path(__file__).resolve().parents[2]
POPULAR = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3",
    "gpt2", "gpt_neox", "gpt_oss", "olmo2", "cohere2", "glm4", "granite",
)  # fmt: skip
# Attention of their own, masks and caches like no other's, or layers that are shared.
ODD = (
    "bart", "bloom", "codegen", "deepseek_v3", "deepseek_v32", "deepseek_v4", "doge", "falcon",
    "gemma3", "llama4", "mamba", "mllama", "moshi", "xglm", "zamba", "paligemma",
)  # fmt: skip


@pytest.fixture
def load(monkeypatch):
    """A function that imports a script of a folder."""

    def get(folder, name):
        monkeypatch.syspath_prepend(str(ROOT / folder))
        return __import__(name)

    return get


@pytest.fixture
def examine(load):
    return load("benchmarks", "zoo_verdicts").examine


def verdicts(row):
    return {
        f"{case}, {route}": found
        for case, routes in row["cases"].items()
        for route, found in routes.items()
    }


def told(row, accepted):
    """What is not accepted, for a message."""
    return {case: x for case, x in verdicts(row).items() if x["verdict"] not in accepted}


@pytest.mark.parametrize("name", POPULAR)
def test_popular_types_equal_eager_in_every_case(name, examine):
    row = examine(name)
    missing = set(row["cases"]) - {
        "bf16"
    }  # rounding to bf16 alone may change a tiny model's answer
    assert not told(row, {"equal", "eager"})
    assert not told({"cases": {case: row["cases"][case] for case in missing}}, {"equal"})
    assert row["attention_calls"]


@pytest.mark.parametrize("name", ODD)
def test_odd_types_are_equal_or_refused(name, examine):
    row = examine(name)
    assert row["verdict"] != "not built", row["reason"]
    assert not told(row, {"equal", "refused", "eager"})


def test_an_answer_that_is_off_is_wrong(examine, monkeypatch):
    compute = integration.compute

    def off(call, rows):
        out, parts = compute(call, rows)
        return out * (1 + 2**-10), parts

    monkeypatch.setattr(integration, "compute", off)
    row = examine("llama")
    assert row["verdict"] == "wrong"
    row["cases"].pop("bf16")  # its rounding is larger
    assert not told(row, {"wrong"})


def test_an_error_that_is_no_refusal_is_a_crash(examine, monkeypatch):
    monkeypatch.setattr(integration, "compute", lambda *_: 1 / 0)
    row = examine("llama")
    assert row["verdict"] == "crash"
    assert all("ZeroDivisionError" in x["reason"] for x in verdicts(row).values())


def test_the_record_has_every_type_and_no_fault(load):
    rows = load("benchmarks/pages", "architectures_page").read_architectures()
    faults = {row["type"]: told(row, {"equal", "refused", "eager"}) for row in rows}
    faults |= {row["type"]: row["reason"] for row in rows if row["verdict"] == "crash"}
    assert not {name: x for name, x in faults.items() if x}
    if {row["transformers"] for row in rows} == {transformers.__version__}:
        known = load("benchmarks", "zoo_models").model_types()
        assert {row["type"] for row in rows} == set(known)


def test_the_page_is_that_of_the_record(load):
    pages = load("benchmarks/pages", "architectures_page").tables()
    assert {page.name: page.read_text("utf-8") == text for page, text in pages.items()} == {
        "architectures.md": True
    }


def test_the_page_says_what_the_record_does(load, tmp_path):
    records = load("benchmarks/pages", "architectures_page")
    facts = {"torch": "9.9", "transformers": "8.8", "commit": "c" * 40, "sparse_calls": 1,
             "attention_calls": 2}  # fmt: skip
    good, bad = {"verdict": "equal"}, {"verdict": "refused", "reason": "Unsupported: 'or_masks' |"}
    rows = [
        {"type": "a", "verdict": "equal", "cases": {"prefill": {"dense": good}}},
        {"type": "b", "verdict": "refused",
         "cases": {"prefill": {"dense": good, "sparse": bad}, "bf16": {"dense": good}}},
        {"type": "c", "verdict": "not built", "reason": "needs a|b", "cases": {}},
    ]  # fmt: skip
    path = tmp_path / "architectures.jsonl"
    grouped = load("benchmarks", "zoo_verdicts").grouped
    path.write_text("".join(json.dumps(facts | grouped(row)) + "\n" for row in rows), "utf-8")
    text = records.body(records.read_architectures(path))
    assert "| equal in every case | 1 |" in text
    assert "see later ones, such as those of an image | `b` (prefill (sparse)) |" in text
    assert "| needs a/b | `c` |" in text
    assert "Faults" not in text
    assert records.body([]) == records.NO_RECORDS
