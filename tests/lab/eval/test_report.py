"""What is made of rows: paired tables, pictures and a page."""

import importlib.util
import json
from pathlib import Path

import pytest

from sample_attention.errors import InvalidInput
from sample_attention.lab.eval.groups import difference, groups_of, share_of_dense
from sample_attention.lab.eval.plots import draw_accuracy, draw_needles
from sample_attention.lab.eval.report import write_evaluation
from sample_attention.lab.eval.tables import evaluation_tables, skipped_notes
from sample_attention.lab.records import EVAL, read_rows


def row(task, method, scores, length=8192, **fields):
    n = len(scores)
    return {
        "model": "m", "yarn": None, "dtype": "float32", "length": length, "task": task,
        "method": method, "setting": "", "n": n, "n_wanted": n, "score": sum(scores) / n,
        "answer_logprob": -1.0, "density": 1.0 if method == "dense" else 0.2, "scores": scores,
        "logprobs": [-1.0 - (method != "dense")] * n, "retained_mass_mean": None, "seed": 0,
        "routed": False, "config": None, "device": "cpu", "threads": 1, "torch": "2",
        **fields,
    }  # fmt: skip


ROWS = [
    row("needle", "dense", [1.0, 1.0, 1.0, 1.0], depths=[0, 0.5, 0.5, 1]),
    row("needle", "default", [1.0, 1.0, 0.0, 1.0], depths=[0, 0.5, 0.5, 1]),
    row("needle", "default", [1.0] * 4, setting="coverage=0.98", density=0.4),
    row("needle", "dense", [1.0, 1.0], 4096, depths=[0, 1]),
    row("needle", "default", [1.0, 0.0], 4096, depths=[0, 1]),
    row("vt", "dense", [0.5, 0.5]),
    row("vt", "default", [0.5, 0.5]),
    row("cwe", "dense", [0.0]),
    {**row("cwe", "default", [0.0]), "n": 0, "score": None, "skipped": "dense attention scores 0"},
    row("ppl_prose", "dense", [0.5], kl=0.0, agreement=1.0),
    row("ppl_prose", "default", [0.5], kl=0.01, agreement=0.9, answer_logprob=-1.01),
]


@pytest.fixture
def cells():
    """Cells of a table as a function of its title's start and headers."""
    tables = evaluation_tables(ROWS)

    def get(title, line, header, length="8,192"):
        (table,) = (t for t in tables if t.title.startswith(title) and length in t.title)
        (found,) = (cells for cells in table.lines if line in cells[:2])
        return found[table.headers.index(header)]

    return get


def test_methods_over_all_tasks(cells):
    assert cells("All tasks", "default", "tasks") == "2"
    assert cells("All tasks", "default", "prompts") == "6"
    assert cells("All tasks", "default", "density") == "0.200"
    assert cells("All tasks", "default", "dense score") == "0.750"
    assert cells("All tasks", "default", "score") == "0.625"
    assert cells("All tasks", "default", "% of dense (95 % CI)").startswith("83.3 (")
    assert cells("All tasks", "default", "worst task").startswith("needle 75.0 (")
    assert cells("All tasks", "default", "Δ log-probability") == "-1.000"
    assert cells("All tasks", "default:coverage=0.98", "tasks") == "1"


def test_ours_at_a_glance():
    rows = [
        *ROWS,
        row("vt", "tuned", [0.5, 0.0], setting="m"),
        row("vt", "tuned", [0.0, 0.0], setting="m,density=0.08"),
    ]
    (table,) = (t for t in evaluation_tables(rows) if t.title.startswith("default and tuned"))
    long, tuned, short = (dict(zip(table.headers, line, strict=True)) for line in table.lines)
    assert (long["tokens"], long["method"]) == ("8,192", "default")
    assert (long["tasks"], long["prompts"]) == ("2", "6")
    assert long["% of dense (95 % CI)"].startswith("83.3 (")
    assert (long["perplexity of prose, code"], long["KL of prose, code"]) == ("+1.01 %", "0.0100")
    assert long["KL where they quote"] == "–"
    assert (tuned["method"], tuned["tasks"]) == ("tuned", "1")
    assert tuned["% of dense (95 % CI)"].startswith("50.0 (")
    assert (short["tokens"], short["perplexity of prose, code"]) == ("4,096", "–")


def test_methods_at_equal_density_share_their_tasks():
    def turned(task, method, scores):
        return row(task, method, scores, setting="density=0.08", density=0.08)

    rows = [
        *ROWS,
        turned("needle", "default", [1.0, 1.0, 1.0, 0.0]),
        turned("needle", "xattention", [0.0] * 4),
        turned("vt", "default", [0.0, 0.0]),
        turned("vt", "a_shape", [0.0, 0.0]),
        row("needle", "tuned", [1.0] * 4, setting="m,density=0.08", density=0.079),
    ]
    (table,) = (t for t in evaluation_tables(rows) if t.title.startswith("Turned to a"))
    assert "density of 0.08, 4 prompts of needle (not all of them: a_shape):" in table.title
    assert [line[:3] for line in table.lines] == [
        ("default", "0.080", "0.750"), ("xattention", "0.080", "0.000"),
        ("tuned", "0.079", "1.000"),
    ]  # fmt: skip


def test_every_task(cells):
    assert cells("Every task", "needle", "default (Δ)").startswith("0.75 (-0.25, ")
    assert cells("Every task", "vt", "default (Δ)") == "0.50 (0)"
    assert cells("Every task", "vt", "default:coverage=0.98 (Δ)") == "–"
    assert cells("Every task", "cwe", "default (Δ)") == "–"


def test_real_text(cells):
    assert cells("Real text", "default", "perplexity") == "2.746"
    assert cells("Real text", "default", "against dense") == "+1.01 %"
    assert cells("Real text", "default", "KL (nats)") == "0.0100"


def test_what_was_left_out_is_named():
    assert skipped_notes(ROWS) == ["m, 8,192 tokens, cwe: dense attention scores 0"]


def test_methods_are_compared_on_their_own_prompts():
    """Dense attention and ours answered four prompts, a rival two; of more prompts counts."""
    few = [row("needle", "dense", [1.0, 0.0]), row("needle", "default", [0.0, 0.0])]
    rival = row("needle", "xattention", [0.5, 0.0])
    (group, _) = groups_of([*few, *ROWS, rival])
    assert len(group.row("needle", "default")["scores"]) == 4
    assert share_of_dense([group.pairs("default")["needle"]]).mean == 0.75
    assert share_of_dense([group.pairs("xattention")["needle"]]).mean == 0.5
    tables = evaluation_tables([*few, *ROWS, rival])
    (tasks, _) = (t for t in tables if t.title.startswith("Every task"))
    (line,) = (cells for cells in tasks.lines if cells[0] == "needle")
    cells = dict(zip(tasks.headers, line, strict=True))
    assert (cells["n"], cells["dense"]) == ("4", "1.00")
    assert cells["xattention (Δ)"].startswith("0.25 (-0.25, ")


def test_differences_are_paired():
    dense, sparse = ROWS[:2]
    change = difference(sparse, dense)
    assert change.mean == -0.25
    assert change.low < -0.25 < change.high <= 0
    assert share_of_dense([(sparse, dense)]).mean == 0.75
    assert share_of_dense([]) is None


def test_the_last_row_of_a_measurement_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    again = row("vt", "default", [1.0, 1.0])
    path.write_text("\n".join(map(json.dumps, [*ROWS, again])), "utf-8")
    rows = read_rows([path], EVAL)
    assert len(rows) == len(ROWS)
    long, short = groups_of(rows)
    assert (long.length, short.length) == (8192, 4096)
    assert long.row("vt", "default")["score"] == 1


@pytest.mark.parametrize("line", ["{", "[]", '{"ms_attend": 1}'])
def test_other_files_are_refused(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(line, "utf-8")
    with pytest.raises(InvalidInput, match=r"rows.jsonl:1 is not"):
        read_rows([path], EVAL)


def test_a_page_with_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    paths = write_evaluation(ROWS, tmp_path / "report")
    assert [p.name for p in paths] == ["accuracy.png", "needles.png", "report.html"]
    for path in paths[:2]:
        assert path.read_bytes().startswith(b"\x89PNG")
    page = paths[2].read_text("utf-8")
    assert all(text in page for text in ("accuracy.png", "default:coverage=0.98", "<h2>Left out"))


def test_pictures():
    pytest.importorskip("matplotlib")
    curves = draw_accuracy(ROWS).axes
    assert [axis.get_title() for axis in curves] == ["m, 8,192 tokens", "m, 4,096 tokens"]
    (line,) = (x for x in curves[0].lines if x.get_label() == "default")
    assert [round(x, 1) for x in line.get_xdata()] == [0.2, 0.4]
    ends = [curves[0].containers[0][2][0].get_segments()[0][i][1] for i in (0, 1)]
    (group, _) = groups_of(ROWS)
    share = share_of_dense([group.pairs("default")["needle"]])
    assert [round(x) for x in ends] == [round(100 * share.low), round(100 * share.high)]
    rivals = [
        row("needle", name, [1.0, 1.0, 0.0, 0.0], density=0.3) for name in ("xattention", "paper")
    ]
    elsewhere = row("vt", "a_shape", [0.0, 0.0])  # not on the needle, which the others ran
    (axis,) = draw_accuracy([*ROWS, *rivals, elsewhere]).axes
    assert {x.get_label() for x in axis.lines} >= {"default", "xattention", "paper"}
    assert "a_shape" not in {x.get_label() for x in axis.lines}
    assert axis.get_title() == "m, 8,192 tokens"
    grids = {axis.get_title(): axis.images[0].get_array() for axis in draw_needles(ROWS).axes}
    nothing = [None, None]  # neither length has a needle there
    assert grids["m\ndefault"].tolist() == [[1, 1], nothing, [None, 0.5], nothing, [0, 1]]
    assert draw_accuracy(ROWS[:1]) is None
    assert draw_needles(ROWS[5:]) is None


@pytest.fixture
def pages():
    """The maker of the pages of evaluations."""
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "pages" / "evaluation_pages.py"
    spec = importlib.util.spec_from_file_location("evaluation_pages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_shows_what_is_recorded(pages):
    assert pages.summary([], []) == pages.results([]) == "Nothing is recorded yet."
    text = pages.summary(ROWS, ["eval_needles.png"])
    assert text.startswith("![Right answers by length of the prompt")
    assert "default and tuned against dense attention" in text
    assert "| task | n | dense |" not in text
    text = pages.results(ROWS)
    assert "| task | n | dense |" in text
    assert "default and tuned against dense attention" not in text
    assert "- m, 8,192 tokens, cwe: dense attention scores 0" in text


def test_every_model_has_a_page(pages, monkeypatch):
    stretched = {**ROWS[0], "yarn": 4.0}
    assert list(pages.by_model([*ROWS, stretched])) == ["m", "m (YaRN 4)"]
    monkeypatch.setattr(pages, "read_evaluation", lambda: ROWS)
    with pytest.raises(ValueError, match=r"no page for \['m'\]"):
        pages.tables()


def test_a_page_without_rows(tmp_path):
    (page,) = write_evaluation([], tmp_path)
    assert "<h1>Evaluation</h1>" in page.read_text("utf-8")
