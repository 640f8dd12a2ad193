"""`run`: the report, in all its forms."""

import json
from dataclasses import replace

import pytest
import torch

from sample_attention import preset
from sample_attention.cli.setup import build_rule
from sample_attention.config import Tuned

pytestmark = pytest.mark.usefixtures("sparse_early")
LAYERS, HEADS = 3, 4
ONCE = ["dense", "sample_attention"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


def test_report_has_every_field_and_stdout_is_json(cli, model_folder, prompt_file, small, folder):
    done = cli(
        "run", model_folder, prompt_file, *small, "--json", "--max-new-tokens", 5, "--output",
        folder, "--repeats", 2,
    )  # fmt: skip
    assert done.code == 0, done.err
    report = done.json
    assert report == json.loads((folder / "report.json").read_text("utf-8"))
    assert report["prompt_tokens"] == 700
    dense, sparse = report["methods"]["dense"], report["methods"]["sample_attention"]
    assert report["timing"]["order"] == [*ONCE, *reversed(ONCE)]
    for method in (dense, sparse):
        assert len(method["ttft_runs_s"]) == 2
        assert min(method["ttft_runs_s"]) <= method["ttft_s"] <= max(method["ttft_runs_s"])
        assert 1 <= method["new_tokens"] <= 5
    assert report["same_text"] == (dense["text"] == sparse["text"])
    assert 0 < sparse["density"] < 1
    mass = sparse["retained_mass"]
    assert 0 <= mass["min"] <= min(mass["p5"], mass["mean"]) <= 1
    assert sparse["sparse_layers"] == LAYERS == len(sparse["layers"])
    for layer in sparse["layers"]:
        for name in ("density", "retained_mass_mean", "retained_mass_p5", "retained_mass_min"):
            assert len(layer[name]) == HEADS
    assert report["config"]["window"] == 32
    assert {"date", "commit", "torch", "threads", "device"} <= report["provenance"].keys()


def test_summary_is_the_mean_over_layers_and_heads(cli, model_folder, prompt_file, small):
    sparse = cli("run", model_folder, prompt_file, *small, "--json").json["methods"][
        "sample_attention"
    ]
    rows = {name: torch.tensor([x[name] for x in sparse["layers"]]).double()
            for name in ("density", "retained_mass_mean", "retained_mass_min")}  # fmt: skip
    ours = [sparse["density"], sparse["retained_mass"]["mean"], sparse["retained_mass"]["min"]]
    theirs = [rows["density"].mean(), rows["retained_mass_mean"].mean(),
              rows["retained_mass_min"].min()]  # fmt: skip
    torch.testing.assert_close(torch.tensor(ours), torch.stack(theirs).float())


def test_picture_is_a_wide_png(cli, model_folder, prompt_file, small, tmp_path):
    pytest.importorskip("matplotlib")
    done = cli("run", model_folder, prompt_file, *small, "--output", tmp_path / "new" / "folder")
    assert done.code == 0, done.err
    data = (tmp_path / "new" / "folder" / "report.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") >= 1200


def test_coverage_one_writes_the_text_of_dense_attention(cli, model_folder, prompt_file):
    report = cli("run", model_folder, prompt_file, "--coverage", 1, "--json", "--threads", 1).json
    assert report["same_text"]
    sparse = report["methods"]["sample_attention"]
    assert sparse["sparse_layers"] == 0
    assert (sparse["density"], sparse["retained_mass"]["min"]) == (1.0, 1.0)


@pytest.mark.parametrize("name", ["fast", "pooled", "paper", "mlsys"])
def test_presets_run(cli, model_folder, prompt_file, name):
    report = cli(
        "run", model_folder, prompt_file, "--preset", name, "--json", "--threads", 1,
        "--held-out", 0, "--max-new-tokens", 1,
    ).json  # fmt: skip
    assert report["config"] == preset(name).to_values()
    mass = report["methods"]["sample_attention"]["retained_mass"]
    assert mass == {"mean": None, "p5": None, "min": None}


def test_without_json_stdout_is_a_table_and_both_texts(cli, model_folder, prompt_file, small):
    done = cli("run", model_folder, prompt_file, *small)
    assert done.code == 0, done.err
    for words in ("time to first token", "density", "retained mass", "dense:", "same text:"):
        assert words in done.out


def test_the_device_and_dtype_are_as_asked(cli, model_folder, prompt_file, small):
    done = cli("run", model_folder, prompt_file, *small, "--dtype", "bfloat16", "--device", "cpu",
               "--json", "--max-new-tokens", 1)  # fmt: skip
    assert done.json["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("preset", ["default", "pooled", "tuned:smollm2-135m"])
def test_a_guard_measures_on_the_rows_that_are_held_out(preset):
    rule = build_rule(preset, None, ["min_retained_mass=0.9"], 6)
    configs = [x.config for x in rule.intervals] if isinstance(rule, Tuned) else [rule]
    assert {(config.check.min_retained_mass, config.check.held_out_rows) for config in configs} == {
        (0.9, 6)
    }
    named = build_rule("default", None, ["min_retained_mass=0.9", "held_out_rows=2"], 6)
    assert named.check.held_out_rows == 2
    assert build_rule("default", None, [], 6).check.held_out_rows == 0


def test_a_run_with_a_guard(cli, model_folder, prompt_file, small):
    command = ("run", model_folder, prompt_file, *small, "--config",
               "min_retained_mass=0.9", "--json", "--max-new-tokens", 1)  # fmt: skip
    assert cli(*command, "--held-out", 4).json["config"]["check"]["held_out_rows"] == 4
    done = cli(*command, "--held-out", 0)
    assert (done.code, "held-out rows" in done.err) == (2, True)


def test_a_configuration_for_more_layers_is_found_before_any_prefill(
    cli, monkeypatch, model_folder, prompt_file, tmp_path
):
    tuned = Tuned.load("tuned:smollm2-135m")
    interval = replace(tuned.intervals[0], heads=((0.9,) * HEADS,) * (LAYERS - 1))
    replace(tuned, intervals=(interval,), measured=()).save(tmp_path / "t.json")
    monkeypatch.setattr("sample_attention.cli.run.report_on", None)
    done = cli("run", model_folder, prompt_file, "--preset", tmp_path / "t.json")
    assert (done.code, f"layer {LAYERS - 1}" in done.err) == (2, True)


def test_closing_words_follow_the_texts(cli, model_folder, prompt_file, small):
    done = cli("run", model_folder, prompt_file, *small, "--max-new-tokens", 2)
    assert done.out.index("same text:") < done.out.index("Time: ") < done.out.index("Attention: ")
