"""`tune`: the file it writes, and that other commands and a model run by it."""

import json
from dataclasses import replace

import pytest
import torch

from sample_attention import SampleAttentionConfig, Tuned
from sample_attention.config import Interval
from sample_attention.integrations.transformers import sample_attention_prefill
from sample_attention.lab.tuning import Reading

LAYERS, HEADS = 3, 4
FAST = ("--lengths", "300,600", "--requests", "4", "--device", "cpu", "--threads", "1",
        "--config", "dense_prefix=0", "--config", "dense_tail=0", "--config", "segment=64",
        "--config", "pool=64", "--config", "window=16", "--config", "row_stride=8",
        "--config", "outliers=2", "--config", "coverage_at=none",
        "--config", "runs=none")  # fmt: skip


@pytest.fixture(autouse=True)
def short_search(monkeypatch):
    """Words of the tiny model's tokenizer, and few shapes."""
    words = " ".join(f"w{(i * i + i // 60) % 60}" for i in range(9000))
    monkeypatch.setattr("sample_attention.lab.tuning.passages.reference_text", lambda _: words)
    monkeypatch.setattr(
        "sample_attention.lab.tuning.search.SHAPES", {"row_stride": (4, 8), "window": (16, 32)}
    )


@pytest.fixture
def command(model_folder):
    return ("tune", "--model", model_folder, *FAST)


@pytest.fixture
def tuned_file(cli, command, tmp_path):
    path = tmp_path / "folder" / "tuned.json"
    done = cli(*command, "--max-kl", 5, "--min-mass", 0.3, "--output", path)
    assert done.code == 0, done.err
    assert "passages not searched on" in done.out
    assert f"wrote {path}" in done.err
    return path


def test_files_hold_what_was_found_and_measured(tuned_file, model_folder):
    tuned = Tuned.load(tuned_file)
    assert tuned.model == model_folder.name
    assert [x.min_kv_len for x in tuned.intervals] == [0, 600]
    assert tuned.provenance["torch"] == torch.__version__
    for interval, row in zip(tuned.intervals, tuned.measured, strict=True):
        assert row["config"] == json.loads(interval.config.to_json())
        assert interval.config.dense_prefix == interval.config.held_out == 0
        assert row["finished"]
        assert row["kl_rows"] == row["length"] // 4
        assert row["searched"] != row["validated"]
        assert row["validated"]["coverage"] == interval.config.coverage
        assert [len(layer) for layer in interval.head_coverage] == [HEADS] * LAYERS
        assert len({share for layer in interval.head_coverage for share in layer}) > 1
        for facts in (row["searched"], row["validated"]):
            assert facts["kl"] <= facts["kl_bound"] <= row["max_kl"] == 5
            assert facts["retained_mass"] >= facts["retained_mass_bound"] >= row["min_mass"] == 0.3
            assert facts["cost"] < 1


@pytest.mark.usefixtures("sparse_early")
def test_run_takes_the_interval_of_the_prompt(cli, tuned_file, model_folder, prompt_file):
    done = cli("run", model_folder, prompt_file, "--preset", tuned_file, "--max-new-tokens", 2,
               "--device", "cpu", "--config", "window=96", "--json")  # fmt: skip
    assert done.code == 0, done.err
    expected = json.loads(Tuned.load(tuned_file).for_length(700).to_json())
    assert done.json["config"] == {**expected, "window": 96}
    assert done.json["tuned_for"] == model_folder.name


@pytest.fixture
def by_head(tmp_path):
    """Heads of the first layer keep little, those of the last next to all."""
    config = SampleAttentionConfig(dense_prefix=128, window=32, coverage_at=None, runs=None)
    table = tuple((share,) * HEADS for share in (0.3, 0.9, 0.999))
    path = tmp_path / "by_head.json"
    Tuned("tiny", (Interval(0, config, table),)).save(path)
    return path


@pytest.mark.usefixtures("sparse_early")
def test_run_and_inspect_have_the_coverages_of_heads(cli, by_head, model_folder, prompt_file):
    run = cli("run", model_folder, prompt_file, "--preset", by_head, "--max-new-tokens", 2,
              "--device", "cpu", "--json")  # fmt: skip
    inspected = cli("inspect", model_folder, prompt_file, "--preset", by_head, "--json",
                    "--layers", "0,1,2")  # fmt: skip
    assert run.code == inspected.code == 0, run.err + inspected.err
    ran = [sum(x["density"]) for x in run.json["methods"]["sample_attention"]["layers"]]
    seen = [sum(h["density"] for h in x["heads"]) for x in inspected.json["layers"]]
    assert ran == pytest.approx(seen, rel=0.05)
    assert ran == sorted(ran)
    assert ran[0] < 0.9 * ran[-1]


def test_inspect_takes_the_interval_of_the_prompt(cli, tuned_file, model_folder, prompt_file):
    done = cli("inspect", model_folder, prompt_file, "--preset", tuned_file, "--json")
    assert done.code == 0, done.err
    expected = Tuned.load(tuned_file).for_length(700)
    assert done.json["config"] == json.loads(expected.to_json())


@pytest.mark.usefixtures("sparse_early")
@pytest.mark.parametrize("length", [400, 700])
def test_models_take_the_interval_of_the_call(tuned_file, loaded_tiny, length):
    ids = torch.arange(length)[None] % 60
    results = []
    interval = Tuned.load(tuned_file).intervals[length >= 600]
    alone = Tuned("", (replace(interval, min_kv_len=0),))
    for config in (str(tuned_file), alone):
        attending = sample_attention_prefill(loaded_tiny.model, config, record=True)
        with torch.inference_mode(), attending as recorder:
            results.append(loaded_tiny.model(ids).logits)
        assert all(layer.route.sparse for layer in recorder.layers)
    assert torch.equal(*results)


@pytest.fixture
def worse_later(monkeypatch):
    """The model loses twice as much on the passages that are not searched on."""
    first = []

    def read(profile, config, _):
        first.append(profile)
        kl = (1 - config.coverage) * (1 if profile is first[0] else 2)
        return Reading(0.3 * config.coverage, kl, 1.0)

    monkeypatch.setattr("sample_attention.lab.tuning.profile._Profile.read", read)


@pytest.mark.usefixtures("worse_later")
def test_coverage_rises_where_other_passages_need_it(cli, command):
    done = cli(*command, "--lengths", 300, "--max-kl", 0.101)
    assert done.code == 0, done.err
    assert "300 tokens: coverage 0.9 was found, 0.95 keeps the budget" in done.err


def test_no_budget_is_dense(cli, command):
    done = cli(*command, "--max-kl", 0, "--json")
    assert done.code == 0, done.err
    tuned = Tuned.from_json(done.out)
    assert all(x.config.dense for x in tuned.intervals)
    assert all(row["validated"]["cost"] == 1 for row in tuned.measured)


def test_the_time_ends_the_search(cli, command):
    done = cli(*command, "--minutes", 0)
    assert done.code == 0
    assert "300 tokens: the time ended the search early" in done.err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--lengths", "99999"), "accepts 1024; choose shorter lengths"),
        (("--lengths", "4"), "accepted: rising, from 8 tokens on"),
        (("--requests", "5"), "requests is 5; accepted: 4, 6, 8"),
        (("--text", "verse"), "accepted: prose, code"),
        (("--min-mass", "0"), "min_mass must be a number in (0, 1]"),
        (
            ("--preset", "paper", "--config", "row_stride=16", "--config", "outliers=0"),
            "cannot start from spread=False, probes=None, segment=64, row_stride=16; accepted",
        ),
        (
            ("--config", "segment=16", "--config", "pool=16"),
            "a segment of 32, 64, 128 rows, and a row_stride up to 32",
        ),
        (("--preset", "no-such"), "unknown preset 'no-such'"),
    ],
)
def test_bad_options(cli, command, options, complaint):
    done = cli(*command, *options)
    assert done.code == 2
    assert complaint in done.err


def test_texts_that_are_too_short_are_named(cli, command, monkeypatch):
    monkeypatch.setattr(
        "sample_attention.lab.tuning.passages.reference_text", lambda _: "w1 " * 500
    )
    done = cli(*command)
    assert done.code == 2
    assert "the text 'prose' has 500 tokens; 2 passages of 600 with other" in done.err
    assert "need 750: choose fewer requests" in done.err


def test_unknown_tuned_names(cli, model_folder, prompt_file):
    done = cli("run", model_folder, prompt_file, "--preset", "tuned:no-such")
    assert done.code == 2
    assert "there is no tuned configuration 'tuned:no-such'" in done.err
