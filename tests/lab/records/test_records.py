"""Records: provenance, and lines of JSON."""

import dataclasses
import json
import subprocess

import pytest
import torch

import sample_attention
from sample_attention.errors import InvalidInput
from sample_attention.lab import records
from sample_attention.lab.records import (
    BENCH,
    EVAL,
    Provenance,
    append_record,
    provenance,
    read_lines,
    read_rows,
)


def test_provenance_states_versions_threads_and_seed():
    collected = Provenance.collect(seed=7)
    assert collected.sample_attention == sample_attention.__version__
    assert collected.torch == torch.__version__
    assert collected.threads == torch.get_num_threads()
    assert collected.seed == 7
    assert collected.device
    assert collected.date.endswith("+00:00")
    assert collected.as_row().keys() == {f.name for f in dataclasses.fields(Provenance)}
    json.dumps(collected.as_row(), allow_nan=False)


def test_commit_is_that_of_the_checkout():
    commit = records.commit_of_checkout()
    if commit is None:
        pytest.skip("not run from a checkout")
    assert len(commit.removesuffix("-dirty")) == 40


def test_no_commit_inside_a_foreign_checkout(tmp_path, monkeypatch):
    """As when the package is installed in an environment that lies in another repository."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    (tmp_path / "__init__.py").write_text("")
    assert records.commit_of_checkout() is None


def test_no_git_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert records.commit_of_checkout() is None


def test_what_is_not_installed_has_no_version():
    assert records.installed_version("no-such-distribution") is None


def test_records_are_appended_as_lines(tmp_path):
    path = tmp_path / "folder" / "rows.jsonl"
    rows = [{"name": "ä", "value": 1.5}, {"name": "b\nc", "value": None}]
    for row in rows:
        append_record(path, row)
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.zeros(1), object()])
def test_what_json_cannot_hold_is_refused_and_not_written(tmp_path, value):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(InvalidInput, match="plain finite values"):
        append_record(path, {"x": value})
    assert not path.exists()


@pytest.mark.parametrize(
    "character", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c", "\r", "\n"]
)
def test_records_hold_any_character(tmp_path, character):
    path, row = tmp_path / "r.jsonl", {"text": f"one{character}text"}
    append_record(path, row)
    append_record(path, row)
    assert [found for _, found in read_lines([path])] == [row, row]


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[" * 10**5, b'{"a": 1} {"a": 2}'])
def test_lines_that_are_not_json_are_named(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"{}\r\n\n" + line)
    with pytest.raises(InvalidInput, match=r"r\.jsonl:3 is not JSON"):
        list(read_lines([path]))


EVALUATED = {"model": "m", "task": "vt", "method": "dense", "setting": "", "length": 9, "n": 1,
             "score": 1.0}  # fmt: skip
ROWS = [
    (BENCH, {"kernel": "a", "seq_len": 9, "config": {"a": 1, "b": 2}}),
    (EVAL, {**EVALUATED, "config": {"a": 1, "b": 2}}),
]


@pytest.mark.parametrize(("form", "row"), ROWS)
def test_of_the_same_measurement_the_last_row_counts(tmp_path, form, row):
    path = tmp_path / "r.jsonl"
    other = {**row, "dtype": "float32"}
    turned = {"config": {"b": 2, "a": 1}, "commit": "new"}
    for each in (row, other, {**row, **turned}):
        append_record(path, each)
    assert read_rows([path], form) == [{**row, **turned}, other]
    assert read_rows([], form) == []


@pytest.mark.parametrize(("form", "row"), ROWS)
def test_rows_of_another_form_are_named(tmp_path, form, row):
    (other,) = (each for x, each in ROWS if x is not form)
    path = tmp_path / "r.jsonl"
    append_record(path, row)
    append_record(path, other)
    with pytest.raises(InvalidInput, match=rf"r\.jsonl:2 is not {form.name}"):
        read_rows([path], form)


def test_a_field_of_another_type_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    append_record(path, {**EVALUATED, "length": "9"})
    with pytest.raises(InvalidInput, match=r"r\.jsonl:1: the field length is '9'; accepted: int"):
        read_rows([path], EVAL)
