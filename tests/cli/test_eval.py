"""`eval`: rows, what is resumed, and what is made of records."""

import json

import pytest

QUICK = (
    "--device",
    "cpu",
    "--threads",
    "1",
    "--lengths",
    "900",
    "--n",
    "1",
    "--tasks",
    "ppl_prose",
)
METHOD = "default:coverage=0.6,dense_prefix=0,dense_tail=0,window=16"


@pytest.fixture(autouse=True)
def short_text(monkeypatch):
    """Words of the tiny model's tokenizer."""
    words = " ".join(f"w{i * i % 60}" for i in range(9000))
    monkeypatch.setattr("sample_attention.lab.eval.tasks.texts.reference_text", lambda _: words)


@pytest.fixture
def command(model_folder):
    return ("eval", "--model", model_folder, *QUICK, "--method", METHOD)


def rows_of(done):
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_rows_are_kept_and_not_measured_again(cli, command, model_folder, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = rows_of(cli(*command, "--output", path, "--json"))
    assert [(r["model"], r["method"]) for r in rows] == [
        (model_folder.name, "dense"), (model_folder.name, "default"),
    ]  # fmt: skip
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == rows
    assert rows_of(cli(*command, "--output", path, "--json")) == []
    assert len(rows_of(cli(*command, "--output", path, "--seed", 1, "--json"))) == 2


def test_tables_are_shown(cli, command):
    done = cli(*command)
    assert done.code == 0, done.err
    assert "Real text: " in done.out
    assert "default:coverage=0.6" in done.out
    assert "measured 2 cells" in done.err


def test_the_time_ends_a_run(cli, command):
    done = cli(*command, "--minutes", 0)
    assert done.code == 0
    assert "measured 0 cells; 2 are left" in done.err


def test_lengths_of_a_suite_beyond_the_model_are_named(cli, model_folder):
    done = cli("eval", "--model", model_folder, "--device", "cpu", "--tasks", "ppl_prose")
    assert done.code == 0, done.err
    assert "not run: prompts of 2048 tokens, since the model accepts 1024" in done.err
    assert "measured 0 cells" in done.err


def test_report(cli, command, tmp_path):
    pytest.importorskip("matplotlib")
    path, folder = tmp_path / "rows.jsonl", tmp_path / "report"
    rows_of(cli(*command, "--output", path, "--json"))
    done = cli("eval", "report", path, "--markdown", "--output", folder)
    assert done.code == 0, done.err
    assert "| text | method |" in done.out
    assert "<table>" in (folder / "report.html").read_text("utf-8")
    assert "Real text" in cli("eval", "report", path).out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--suite", "no-such"), "accepted are quick, standard, full"),
        (("--tasks", "no-such"), "there is no task 'no-such'; accepted: ruler"),
        (("--method", "no-such"), "there is no method 'no-such'; accepted: dense, default"),
        (("--lengths", "99999"), "accepts 1024; choose shorter lengths"),
    ],
)
def test_bad_options(cli, command, options, complaint):
    done = cli(*command, *options)
    assert done.code == 2
    assert complaint in done.err
