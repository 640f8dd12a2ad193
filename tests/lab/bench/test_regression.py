"""Two commits side by side: what is refused, when the exit code says slower, and one small run."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sample_attention as sa

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "benchmarks" / "regression.py"
SEEN = {"hash": "a", "ran": "sparse", "density": "0.1", "kept": "0.9"}


@pytest.fixture
def regression(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("regression", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout():
    done = subprocess.run(
        ["git", "ls-files", "pyproject.toml"], cwd=ROOT, capture_output=True, check=False
    )
    if done.returncode or not done.stdout:
        pytest.skip("not a checkout")


def sides(here, against, **seen):
    """Rows of one case by their milliseconds; `seen` is of this tree."""
    return {
        "here": [{"ms": ms, **SEEN, **seen} for ms in here],
        "against": [{"ms": ms, **SEEN} for ms in against],
    }


def run_main(regression, monkeypatch, rows, *arguments):
    monkeypatch.setattr(sys, "argv", ["regression.py", "--against", "HEAD", *arguments])
    monkeypatch.setattr(regression, "alternate", lambda *_: {"a call": rows})
    nowhere = contextlib.contextmanager(lambda _: iter([("nowhere", "abc1234")]))
    monkeypatch.setattr(regression, "checked_out", nowhere)
    return regression.main()


SLOWER = sides(here=[20, 21, 22], against=[10, 11, 12])
WITHIN = sides(here=[11, 11, 11], against=[10, 10, 12])


@pytest.mark.parametrize(
    ("rows", "arguments", "code"),
    [
        (SLOWER, (), 1),
        (WITHIN, (), 0),  # a tenth slower, and one tree is a fifth slower than itself
        (WITHIN, ("--limit", "1.05"), 1),
        (SLOWER, ("--limit", "3"), 0),
    ],
)
def test_exit_code_says_slower(regression, monkeypatch, capsys, rows, arguments, code):
    assert run_main(regression, monkeypatch, rows, *arguments) == code
    assert ("**slower**" in capsys.readouterr().out) == (code == 1)


def test_table_says_which_results_differ(regression):
    same = regression.compare("a call", sides([1, 1], [1, 1]), None)
    other = regression.compare("a call", sides([1, 1], [1, 1], hash="b", ran="dense"), None)
    assert "same bits" in regression.table([same], "abc1234")
    assert "ran dense, was sparse" in regression.table([other], "abc1234")


def test_every_second_turn_begins_with_the_other_tree(regression, monkeypatch):
    seen = []

    def run_child(_, tree, *arguments):
        seen.append((tree, arguments))
        return json.dumps({"case": "a call", "ms": 1})

    monkeypatch.setattr(regression, "run_child", run_child)
    rows = regression.alternate({"here": "a", "against": "b"}, turns=3, length=9)
    assert [tree for tree, _ in seen] == ["a", "b", "b", "a", "a", "b"]
    assert {arguments for _, arguments in seen} == {("--child", "--length", "9")}
    assert {side: len(r) for side, r in rows["a call"].items()} == {"here": 3, "against": 3}


def test_wrong_results_are_not_timed(regression):
    q, k, v = qkv = regression.planted((2, 1, 32), 300, "cpu", torch.float32)
    plan = sa.select(q, k)
    out, lse = sa.attend(q, k, v, plan)
    assert regression.check(out, lse, qkv, plan) == "sparse"
    with pytest.raises(SystemExit, match="wrong on the inputs"):
        regression.check(out + 1, None, qkv, plan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--turns", "1"), "at least 2 turns"),
        (("--limit", "0"), "a ratio of times is positive"),
        (("--against", "no-such-commit"), "name the commit with --against"),
    ],
)
def test_refusals_say_what_to_do(regression, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["regression.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        regression.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_failing_tree_is_named(regression, capsys, tmp_path):
    (tmp_path / "src" / "sample_attention").mkdir(parents=True)
    (tmp_path / "src" / "sample_attention" / "__init__.py").write_text("1 / 0", "utf-8")
    with pytest.raises(SystemExit) as ended:
        regression.alternate({"against": str(tmp_path)}, turns=2, length=300)
    assert ended.value.code == 2
    assert "the process of `against`" in capsys.readouterr().err


@pytest.mark.usefixtures("checkout")
def test_the_worktree_of_a_commit_goes_again(regression):
    with regression.checked_out("HEAD") as (tree, commit):
        assert (Path(tree) / "pyproject.toml").exists()
        assert tree in regression.git("worktree", "list")
        assert regression.git("rev-parse", "HEAD").startswith(commit)
    assert not Path(tree).exists()
    assert tree not in regression.git("worktree", "list")


@pytest.mark.slow
@pytest.mark.usefixtures("checkout")
def test_small_run_against_the_same_commit():
    command = [sys.executable, str(SCRIPT), "--against", "HEAD", "--turns", "2", "--json"]
    command += ["--length", "300", "--limit", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) >= 2
    for row in rows:
        assert row["ratio"] == row["ms"]["here"] / row["ms"]["against"]
        assert min(row["spread"].values()) >= 1
        assert row["ran"].keys() == row["density"].keys() == {"here", "against"}
