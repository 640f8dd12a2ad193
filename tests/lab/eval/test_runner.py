"""Rows: fields, the same prompts for every method, what is resumed, skipped and left for later."""

import json
import math
from dataclasses import replace

import pytest
import torch

from sample_attention import SampleAttentionConfig, Tuned
from sample_attention.config import Interval
from sample_attention.errors import InvalidConfig, PromptTooLong
from sample_attention.lab.contenders import DENSE, Contender, parse_method, parse_methods
from sample_attention.lab.eval.measure import measure_answer, turned_to_density
from sample_attention.lab.eval.runner import RunSettings, measure_cells, pending_cells
from sample_attention.lab.eval.suites import SUITES, Stage, Suite, cells_of, narrowed
from sample_attention.lab.eval.tasks import parse_tasks
from sample_attention.lab.models import reference_text
from sample_attention.lab.models.tokens import encode
from sample_attention.lab.reading import text_logits
from sample_attention.methods import METHODS, XAttention
from sample_attention.routing import policy

LENGTH = 768
SETTINGS = RunSettings("tiny", skip_below=0.0)
SMALL = "coverage_at=none,dense_prefix=0,dense_tail=0,runs=none,window=16"
SPARSE = f"default:coverage=0.6,{SMALL}"
FIELDS = {
    "model", "length", "task", "method", "setting", "n", "score", "answer_logprob", "ci95",
    "density", "retained_mass_mean", "seed", "commit", "config", "scores", "logprobs", "densities",
    "routed", "device", "versions", "date", "dtype", "yarn",
}  # fmt: skip


def suite(*methods, tasks=("needle",), n=2):
    return Suite("tiny", (Stage((LENGTH,), tasks, methods, n, n),))


def measured(loaded, suite, settings=SETTINGS, known=()):
    pending = pending_cells(loaded, cells_of(suite), settings, known)
    return list(measure_cells(loaded, pending, settings, known))


def test_rows_of_answers(loaded):
    rows = measured(loaded, suite(SPARSE, tasks=("needle", "qa_1")))
    assert [(r["task"], r["method"]) for r in rows] == [
        ("needle", "dense"), ("needle", "default"), ("qa_1", "dense"), ("qa_1", "default"),
    ]  # fmt: skip
    for row in rows:
        assert row.keys() >= FIELDS
        assert row["n"] == len(row["scores"]) == len(row["logprobs"]) == 2
        assert row["ci95"][0] <= row["score"] <= row["ci95"][1]
        json.dumps(row, allow_nan=False)
    dense, sparse = rows[:2]
    assert dense["density"] == 1
    assert dense["setting"] == ""
    assert dense["config"] is None
    assert sparse["setting"] == SPARSE.removeprefix("default:")
    assert sparse["config"]["coverage"] == 0.6
    assert 0 < sparse["density"] < 1
    assert sparse["retained_mass_mean"] is None
    assert sparse["logprobs"] != dense["logprobs"]
    assert dense["depths"] == [0, 1]
    assert "depths" not in rows[2]


def test_rows_of_text(loaded):
    dense, sparse = measured(loaded, suite(SPARSE, tasks=("ppl_prose",)))
    assert dense["kl"] == 0
    assert dense["agreement"] == 1
    assert sparse["kl"] > 0
    assert 0 <= sparse["agreement"] < 1
    assert sparse["density"] < 1
    assert sparse["answer_logprob"] < 0


def test_retained_mass_is_measured_on_request(loaded):
    settings = RunSettings("tiny", held_out=2, skip_below=0.0)
    known = measured(loaded, suite(SPARSE))
    (sparse,) = measured(loaded, suite(SPARSE), settings, known)  # dense: as before
    assert sparse["density"] == known[1]["density"]
    least, low, mean = (sparse[f"retained_mass_{x}"] for x in ("min", "p5", "mean"))
    assert 0 < least < low < mean < 1
    assert sparse["config"]["held_out"] == 2


def test_the_crossover_holds_where_rows_are_routed(loaded):
    before = dict(policy.CROSSOVERS)
    settings = RunSettings("tiny", routed=True, skip_below=0.0)
    dense, sparse = measured(loaded, suite(SPARSE), settings)
    assert sparse["routed"]
    assert sparse["density"] == 1
    assert sparse["scores"] == dense["scores"]
    assert before == policy.CROSSOVERS


def test_known_rows_are_not_measured_again(loaded):
    first = measured(loaded, suite(SPARSE))
    lines = [json.loads(json.dumps(row)) for row in first]
    assert measured(loaded, suite(SPARSE), known=lines) == []
    (new,) = measured(loaded, suite(SPARSE, "paper"), known=lines)
    assert new["method"] == "paper"
    for other in (RunSettings("tiny", seed=1, skip_below=0.0), RunSettings("other")):
        assert len(measured(loaded, suite(SPARSE), other, lines)) == 2
    assert len(measured(loaded, suite(SPARSE, n=1), known=lines)) == 2


def test_a_resumed_run_gives_the_same_numbers(loaded):
    tasks = ("ppl_code", "vt")
    whole = measured(loaded, suite(SPARSE, tasks=tasks))
    parts = measured(loaded, suite(DENSE, tasks=tasks))
    parts += measured(loaded, suite(SPARSE, tasks=tasks), known=parts)
    assert sorted(map(_numbers, whole)) == sorted(map(_numbers, parts))


def _numbers(row):
    return row["task"], row["method"], row["scores"], row["logprobs"], row.get("kls")


def test_tasks_on_which_dense_fails_are_skipped_and_named(loaded):
    settings = RunSettings("tiny", skip_below=0.3)
    rows = measured(loaded, suite(SPARSE, tasks=("needle", "ppl_prose")), settings)
    dense, skipped, *text = rows
    assert dense["score"] == 0
    assert skipped["skipped"] == "dense attention scores 0.00, below 0.3"
    assert skipped["n"] == 0
    assert skipped["score"] is skipped["answer_logprob"] is skipped["density"] is None
    assert all("skipped" not in row for row in text)
    assert measured(loaded, suite(SPARSE), settings, rows) == []


def test_no_cell_is_begun_after_the_minutes(loaded):
    assert measured(loaded, suite(SPARSE), RunSettings("tiny", minutes=0)) == []


def test_prompts_beyond_the_context_are_refused(loaded):
    cells = cells_of(narrowed(suite(SPARSE), lengths=[4096]))
    with pytest.raises(PromptTooLong, match="tiny accepts 2048"):
        pending_cells(loaded, cells, SETTINGS, [])


def test_nearly_all_is_nearly_dense(loaded):
    (task,) = parse_tasks(["niah_multiquery"])
    (sample,) = task.samples(loaded.tokenizer, LENGTH, 1, 0)
    nearly = parse_method("default:coverage=0.9999999,dense_prefix=0,dense_tail=0,dense_above=1.0")
    dense, sparse = (measure_answer(loaded, sample, m) for m in (Contender(DENSE), nearly))
    assert math.isclose(dense.answer_logprob, sparse.answer_logprob, rel_tol=1e-3)
    assert dense.score == sparse.score


def test_the_log_probability_is_that_of_one_pass(loaded):
    """Prompt and answer read at once, without a cache."""
    (task,) = parse_tasks(["niah_multiquery"])
    (sample,) = task.samples(loaded.tokenizer, LENGTH, 1, 0)
    ids = torch.tensor([[*sample.token_ids, *sample.target_ids]])
    with torch.no_grad():
        rows = loaded.model(ids).logits[0, len(sample.token_ids) - 1 : -1].double().log_softmax(-1)
    expected = float(rows.gather(1, torch.tensor(sample.target_ids)[:, None]).sum())
    found = measure_answer(loaded, sample, Contender(DENSE)).answer_logprob
    assert math.isclose(found, expected, rel_tol=1e-4)


def test_what_is_written_is_what_the_model_generates(loaded):
    (task,) = parse_tasks(["niah_single_2"])
    (sample,) = task.samples(loaded.tokenizer, LENGTH, 1, 0)
    ids = torch.tensor([sample.token_ids])
    written = loaded.model.generate(ids, do_sample=False, max_new_tokens=sample.max_new_tokens)
    text = loaded.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    seen = []
    spy = type(sample)(
        **{**vars(sample), "metric": lambda output, _: float(seen.append(output) or 0)}
    )
    measure_answer(loaded, spy, Contender(DENSE))
    assert seen == [text]


def test_nothing_is_written_after_the_answer(loaded):
    (task,) = parse_tasks(["niah_single_2"])
    (sample,) = task.samples(loaded.tokenizer, LENGTH, 1, 0)
    ids = torch.tensor([sample.token_ids])
    written = loaded.model.generate(ids, do_sample=False, max_new_tokens=3)[0, ids.shape[1] :]
    answer = loaded.tokenizer.decode(written[:1])
    steps = []
    with loaded.model.register_forward_hook(lambda *_: steps.append(1)):
        easy = replace(sample, answers=(answer,), target_ids=sample.target_ids[:1])
        assert measure_answer(loaded, easy, Contender(DENSE)).score == 1
    assert len(steps) == 1, "the prefill writes the whole answer"


def test_a_method_is_turned_to_a_density(loaded):
    ids = encode(loaded.tokenizer, reference_text()[:8000])[:1024]
    for wanted in (0.3, 0.5):
        method = parse_method(f"default:density={wanted},{SMALL}")
        _, computed = text_logits(loaded, ids, turned_to_density(loaded, ids, method))
        assert abs(computed.density - wanted) < 0.1 * wanted
    (_, row) = measured(loaded, suite(f"default:density=0.4,{SMALL}"))
    assert {*row["setting"].split(",")} == {"density=0.4", *SMALL.split(",")}
    assert row["turned"]["coverage"] != row["config"]["coverage"]


@pytest.mark.parametrize("name", METHODS)
def test_baselines_run_on_the_same_harness(loaded, name):
    dense, row, turned = measured(loaded, suite(name, f"{name}:density=0.5"))
    assert row["method"] == turned["method"] == name
    assert 0 < row["density"] <= 1
    assert turned["density"] < 0.9
    assert dense["scores"] is not None


def test_methods_are_read_from_text():
    assert parse_method("xattention:threshold=0.8").config == XAttention(threshold=0.8)
    assert parse_method("paper").config.row_stride == 20
    method = parse_method("pooled: window=128,pool=none".replace(" ", ""))
    assert (method.config.window, method.config.pool) == (128, None)
    assert method.label == "pooled:pool=none,window=128"
    assert parse_method(method.label) == method
    assert [m.label for m in parse_methods(["paper", DENSE, "paper"])] == ["dense", "paper"]


def test_tuned_configurations_are_methods(tmp_path):
    table = ((0.3, 0.5), (0.7, 0.9))
    tuned = Tuned("tiny", (Interval(0, SampleAttentionConfig(), table),))
    tuned.save(tmp_path / "tuned.json")
    method = parse_method(f"tuned:{tmp_path / 'tuned.json'}")
    assert (method.name, method.config) == ("tuned", tuned)
    assert parse_method(method.label) == method
    measuring = method.measuring(4)
    assert measuring.config.intervals[0].config.held_out == 4
    assert measuring.config.intervals[0].head_coverage == table
    assert method.recorded["tuned_for"] == "tiny"
    assert method.recorded != measuring.recorded
    same, halved, most = (method.turned(x, 100).config.intervals[0] for x in (0.5, 0.5625, 0.0))
    assert sum(same.head_coverage, ()) == pytest.approx((0.3, 0.5, 0.7, 0.9))
    assert sum(halved.head_coverage, ()) == pytest.approx((0.65, 0.75, 0.85, 0.95))
    assert halved.config.coverage == pytest.approx(1 - (1 - SampleAttentionConfig().coverage) / 2)
    assert sum(most.head_coverage, ()) == pytest.approx([0.001] * 4)  # loses all but the bound
    equal = parse_method(f"tuned:{tmp_path / 'tuned.json'},density=0.16")
    assert (equal.config, equal.density) == (tuned, 0.16)
    assert parse_method(equal.label) == equal
    shipped, _ = parse_methods(["tuned:smollm2-135m", DENSE, "tuned:smollm2-135m"])[::-1]
    assert (shipped.label, shipped.config.model) == ("tuned:smollm2-135m", "smollm2-135m")


@pytest.mark.parametrize(
    "text",
    ["no-such", "default:window", "default:window=wide", "default:no_such=1", "dense:window=3",
     "xattention:no_such=1", "xattention:threshold=2", "default:coverage=2", "default:density=1.5",
     "tuned", "tuned:no-such", "tuned:density=0.1", "tuned:smollm2-135m,window=3",
     "tuned:smollm2-135m,density=2"],
)  # fmt: skip
def test_bad_methods_are_refused(text):
    with pytest.raises(InvalidConfig):
        parse_method(text)


@pytest.mark.parametrize("name", SUITES)
def test_suites_name_what_there_is(name):
    cells = cells_of(SUITES[name])
    assert len(cells) == len(set(cells))
    assert cells[0].method.name == DENSE
    small = narrowed(SUITES[name], lengths=[512], tasks=["vt"], methods=["paper"], n=1)
    assert [c.method.label for c in cells_of(small)] == ["dense", "paper"]
