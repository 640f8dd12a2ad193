"""Records: provenance, and lines of JSON."""

import dataclasses
import json
import subprocess

import pytest
import torch

import sample_attention
from sample_attention.errors import InvalidInput
from sample_attention.lab import records
from sample_attention.lab.records import Provenance, append_record, read_lines


def test_provenance_states_versions_threads_and_seed():
    facts = Provenance.collect(seed=7)
    assert facts.sample_attention == sample_attention.__version__
    assert facts.torch == torch.__version__
    assert facts.threads == torch.get_num_threads()
    assert facts.seed == 7
    assert facts.device
    assert facts.date.endswith("+00:00")
    assert facts.as_row().keys() == {f.name for f in dataclasses.fields(Provenance)}
    json.dumps(facts.as_row(), allow_nan=False)


def test_commit_is_that_of_the_checkout():
    commit = records.commit_of_checkout()
    if commit is None:
        pytest.skip("not run from a checkout")
    assert len(commit.removesuffix("-dirty")) == 40


def test_no_commit_inside_a_foreign_checkout(tmp_path, monkeypatch):
    """As when the package is installed in an environment that lies in another repository."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
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
