"""`bench`: rows, their gate, records and what is made of them."""

import json
from importlib.metadata import version

import pytest
import torch

from sample_attention import Tuned, api, preset
from sample_attention.attention.eager import engine as eager
from sample_attention.config import Interval, config_from_json
from sample_attention.errors import InvalidConfig, InvalidInput
from sample_attention.lab.contenders import dense
from sample_attention.lab.inputs import Shape, random_inputs, random_plan

QUICK = ("--device", "cpu", "--threads", "1", "--seconds", "0")
RANDOM = ("bench", "attention", *QUICK, "--heads", "4", "--kv-heads", "2", "--head-dim", "32",
          "--config", "window=32")  # fmt: skip
ROW = {
    "input", "seq_len", "heads", "kv_heads", "head_dim", "batch", "dtype", "backend", "preset",
    "coverage", "segment", "sample_stride", "density", "retained_mass_mean", "retained_mass_p5",
    "ms_select", "ms_select_p20", "ms_select_p80", "ms_attend", "ms_attend_p20", "ms_attend_p80",
    "ms_total", "ms_total_p20", "ms_total_p80", "ms_dense", "speedup_vs_fa3", "attend_tflops",
    "ppl_ratio", "extra_bytes", "error", "error_budget", "gpu", "versions", "commit", "route",
    "date", "device", "threads", "torch", "ms_floor", "matmul_gflops",
}  # fmt: skip


HEADS = 4


@pytest.fixture(autouse=True)
def short_text(monkeypatch):
    """Words of the tiny model's tokenizer, and a machine whose speed is known."""
    words = " ".join(f"w{i * i % 60}" for i in range(1200))
    monkeypatch.setattr("sample_attention.lab.models.prompt.reference_text", lambda _: words)
    monkeypatch.setattr("sample_attention.cli.bench.machine_gflops", lambda: 100.0)


@pytest.fixture
def of_layers(model_folder):
    return ("bench", "attention", *QUICK, "--input", f"captured:{model_folder}", "--lengths", "700",
            "--layers", "1")  # fmt: skip


@pytest.fixture
def captured(of_layers):
    return (*of_layers[:-2], "--config", "dense_prefix=128", "--config", "window=32", "--config",
            "tighten_below=none", "--config", "run_share=none", "--layers", "1")  # fmt: skip


SMALL = ("--config", "dense_prefix=128", "--config", "window=32", "--config", "tighten_below=none")


def rows_of(done):
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_rows_of_random_lists(cli, tmp_path):
    path = tmp_path / "rows.jsonl"
    done = cli(*RANDOM, "--lengths", "300,600", "--density", "0.7", "--output", path, "--json")
    rows = rows_of(done)
    assert [r["seq_len"] for r in rows] == [300, 600]
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == rows
    for row in rows:
        assert row.keys() >= ROW
        assert abs(row["density"] - 0.7) < 0.05
        assert row["input"] == "random"
        assert row["ms_select"] is row["ms_total"] is row["preset"] is None
        assert 0 < row["ms_attend_p20"] <= row["ms_attend"] <= row["ms_attend_p80"]
        assert row["ms_dense"].keys() == {"sdpa"}
        assert row["error"] <= row["error_budget"]
        assert row["versions"]["torch"] == version("torch")
    assert "measuring" not in done.err


def test_rules_name_what_they_override(cli, of_layers, tmp_path):
    path = tmp_path / "rows.jsonl"
    fields = (
        "--config",
        "segment=256",
        "--config",
        "sample_stride=32",
        "--config",
        "rows=64",
        *SMALL,
    )
    rule = ("--preset", "pooled", *fields)
    (row,) = rows_of(cli(*of_layers, *rule, "--json", "--output", path))
    assert (row["config"]["segment"], row["config"]["ranking"]["rows"]) == (256, 64)
    done = cli("bench", "report", path)
    assert "pooled, window=32, segment=256, sample_stride=32, rows=64, dense_prefix=128" in done.out


def test_rows_of_captured_inputs(cli, of_layers, model_folder):
    chosen = ("--coverage", 0.9, "--json", "--preset")
    rows = rows_of(cli(*of_layers, *chosen, "default", *SMALL, "--config", "run_share=none"))
    rows += rows_of(cli(*of_layers, *chosen, "paper"))
    assert [(r["preset"], r["coverage"]) for r in rows] == [("default", 0.9), ("paper", 0.9)]
    for row in rows:
        assert row.keys() >= ROW
        assert row["input"] == f"captured:{model_folder.name}/python-reference/1"
        assert (row["heads"], row["kv_heads"], row["head_dim"], row["batch"]) == (4, 2, 16, 1)
        assert min(row["ms_total"], row["ms_select"], row["ms_attend"]) > 0
        assert 0 < row["density"] < 1
        assert row["config"]["coverage"] == 0.9
        whole = config_from_json(json.dumps(row["config"]))
        assert row["layer_coverage"] == whole.for_layer(1, 3).coverage
        assert 0 < row["retained_mass_p5"] <= row["retained_mass_mean"] <= 1
        assert row["route"] == "dense"
        assert "sparse pays from" in row["route_reason"]
        assert row["extra_bytes"] is row["gpu"] is None
    assert rows[0]["config"]["window"] == 32
    assert rows[1]["segment"] is None


@pytest.fixture
def tuned_file(tmp_path):
    """Every layer has coverages of its own."""
    config = preset("default", dense_prefix=128, window=32, tighten_below=None, run_share=None)
    table = ((0.3,) * HEADS, (0.5, 0.6, 0.7, 0.8), (0.9,) * HEADS)
    path = tmp_path / "tuned.json"
    Tuned("tiny", (Interval(0, config, table),)).save(path)
    return path


def test_captured_layers_have_their_tuned_coverages(cli, captured, tuned_file, tmp_path):
    rows = tmp_path / "rows.jsonl"
    command = (*captured[:-1], "1,2", "--preset", tuned_file, "--output", rows)
    first, second = rows_of(cli(*command, "--json"))
    assert first["config"]["budget"]["heads"] == [0.5, 0.6, 0.7, 0.8]
    assert second["config"]["budget"]["heads"] == [0.9] * HEADS
    assert first["preset"] == str(tuned_file)
    assert str(tuned_file) in cli("bench", "report", rows).out


def test_random_inputs_have_no_layer_to_be_tuned_for(cli, tuned_file):
    done = cli(*RANDOM, "--lengths", "300", "--preset", tuned_file)
    assert done.code == 2
    assert "choose --input captured:tiny" in done.err


@pytest.mark.usefixtures("sparse_early")
def test_ttft_of_a_tuned_model(cli, model_folder, tuned_file):
    command = ("bench", "ttft", model_folder, "--lengths", "700", "--device", "cpu")
    _, ours = rows_of(cli(*command, "--preset", tuned_file, "--repeats", 1, "--json"))
    assert (ours["preset"], ours["sparse_layers"]) == (str(tuned_file), 3)
    assert ours["config"]["window"] == 32


def test_every_preset_is_measured_at_every_coverage(cli, captured):
    several = ("--preset", "fast", "--preset", "default", "--coverage", 0.9, "--coverage", 0.8)
    rows = rows_of(cli(*captured, *several, "--json"))
    assert [(r["preset"], r["coverage"]) for r in rows] == [
        ("fast", 0.9), ("fast", 0.8), ("default", 0.9), ("default", 0.8)
    ]  # fmt: skip


def test_routed_rows_are_those_of_the_public_call(cli, captured):
    (row,) = rows_of(cli(*captured, "--routed", "--json"))
    assert row["density"] == row["retained_mass_mean"] == 1
    assert row["ms_select"] is row["ms_attend"] is row["attend_tflops"] is None
    assert row["ms_total"]


@pytest.mark.usefixtures("sparse_early")
def test_routed_rows_run_sparse_where_that_pays(cli, captured):
    (row,) = rows_of(cli(*captured, "--routed", "--json"))
    assert row["route"] == "sparse"
    assert row["density"] < 1
    assert row["ms_select"]


def test_passages_of_a_batch_are_consecutive(cli, captured):
    (row,) = rows_of(cli(*captured, "--batch", 3, "--lengths", 400, "--json"))
    assert (row["batch"], row["seq_len"]) == (3, 400)
    done = cli(*captured, "--batch", 4, "--lengths", 400)
    assert done.code == 2
    assert "1200 tokens and 1600 are needed" in done.err


def test_a_wrong_backend_is_not_recorded(cli, captured, monkeypatch, tmp_path):
    def wrong(q, k, v, problem, plan, scale):
        out, lse = right(q, k, v, problem, plan, scale)
        out[:, -1, -1] += 0.1
        return out, lse

    right = eager.attend
    monkeypatch.setattr(eager, "attend", wrong)
    for command in (captured, (*RANDOM, "--lengths", "300", "--density", "0.7")):
        path = tmp_path / "rows.jsonl"
        done = cli(*command, "--output", path, "--json")
        assert done.code == 2
        assert "wrong on the inputs to be measured: attend: out" in done.err
        assert done.out == ""
        assert not path.exists()


def test_a_wrong_dense_provider_is_not_recorded(cli, monkeypatch):
    class Wrong(dense.DenseContender):
        def __call__(self, *arguments):
            return super().__call__(*arguments) * 1.01

    right = dense.PROVIDERS_MEASURED[-1].provider
    monkeypatch.setattr(dense, "PROVIDERS_MEASURED", (Wrong(right),))
    done = cli(*RANDOM, "--lengths", "300", "--density", "0.7")
    assert done.code == 2
    assert "wrong on the inputs to be measured: sdpa: out" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input", "captured:"], "random and captured:MODEL"),
        (["--lengths", "0"], "at least one token"),
        (["--lengths", "300", "--density", "0.01"], "the window alone is"),
        (["--lengths", "300", "--density", "0.7", "--preset", "paper"], "with a KEY of coverage"),
        (["--lengths", "300", "--density", "0.7", "--dense", "fast"], "no dense provider 'fast'"),
        (["--lengths", "300", "--density", "0.7", "--dense", "fa3"], "accepted: an NVIDIA GPU"),
        (["--lengths", "300", "--density", "0.7", "--backend", "gpu"], "unknown backend 'gpu'"),
        (["--dtype", "int8"], "accepted are float32"),
    ],
)
def test_bad_options(cli, options, words):
    done = cli(*RANDOM, *options)
    assert done.code == 2
    assert words in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cpu"], "run on an NVIDIA GPU"),
        (["--device", "cpu", "--lengths", "0"], "at least one token"),
        (["--device", "cpu", "--config", "window=some"], "a number, true, false or none"),
    ],
)
def test_bad_options_of_kernels(cli, options, words):
    done = cli("bench", "kernels", *options)
    assert done.code == 2
    assert words in done.err.splitlines()[-1]


def test_unknown_text_is_found_before_the_model_is_loaded(cli):
    for command in (("attention", "--input", "captured:no-such.gguf"), ("ttft", "no-such.gguf")):
        done = cli("bench", *command, "--device", "cpu", "--text", "poems")
        assert done.code == 2
        assert "no text 'poems'; accepted: prose, code" in done.err.splitlines()[-1]


def test_prompts_beyond_the_context_name_the_remedy(cli, captured):
    done = cli(*captured, "--lengths", "1100")
    assert done.code == 2
    assert "accepts 1024" in done.err
    assert "--yarn" in done.err
    (row,) = rows_of(cli(*captured, "--lengths", "1100", "--yarn", 2, "--json"))
    assert (row["yarn"], row["seq_len"]) == (2, 1100)


@pytest.mark.usefixtures("sparse_early")
def test_ttft_compares_the_same_model(cli, model_folder, small):
    command = ("bench", "ttft", model_folder, "--lengths", "700", "--device", "cpu", *small)
    sdpa, ours = rows_of(cli(*command, "--repeats", 2, "--json"))
    assert (sdpa["method"], ours["method"]) == ("sdpa", "sample_attention")
    assert (sdpa["density"], sdpa["sparse_layers"], sdpa["next_token_kl"]) == (1, 0, 0)
    assert ours["density"] < 1
    assert ours["sparse_layers"] == 3
    assert ours["next_token_kl"] > 0
    assert (sdpa["preset"], ours["preset"]) == (None, "default")
    for row in (sdpa, ours):
        assert row["model"] == model_folder.name
        assert (row["text"], row["seq_len"], row["repeats"]) == ("python-reference", 700, 2)
        assert 0 < row["ttft_ms_p20"] <= row["ttft_ms"] <= row["ttft_ms_p80"]
        assert {"gpu", "versions", "commit", "first_token", "same_first_token"} <= row.keys()


def test_ttft_of_dense_is_that_of_the_model(loaded_tiny):
    from sample_attention.lab.contenders import dense_attention
    from sample_attention.lab.generation import prefill

    ids = torch.arange(2, 50)[None]
    expected = prefill(loaded_tiny.model, ids)
    before = loaded_tiny.model.config._attn_implementation
    with dense_attention(loaded_tiny.model, dense.PROVIDERS_MEASURED[-1]):
        assert loaded_tiny.model.config._attn_implementation == "dense_sdpa"
        torch.testing.assert_close(prefill(loaded_tiny.model, ids), expected)
    assert loaded_tiny.model.config._attn_implementation == before


def test_report_of_records(cli, captured, model_folder, small, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "rows.jsonl"
    for _ in range(2):  # of the same measurement the last one counts
        done = cli(*captured, "--output", path)
        assert done.code == 0, done.err
    assert f"appended 1 records to {path}" in done.err
    assert "Attention alone" in done.out
    cli(*RANDOM, "--lengths", "300", "--density", "0.7", "--output", path)
    cli("bench", "ttft", model_folder, "--lengths", "300", *small, "--repeats", 1, "--output", path)
    done = cli("bench", "report", path, "--markdown", "--plot", tmp_path / "speed.svg")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert sum(f"{model_folder.name}, python-reference, layer 1" in x for x in lines) == 1
    assert sum(x.startswith("| random |") for x in lines) == 1
    assert sum(f"| {model_folder.name} |" in x for x in lines) == 2
    assert (tmp_path / "speed.svg").read_text("utf-8").lstrip().startswith("<?xml")


@pytest.mark.parametrize("text", ["", "no json", '{"a": 1}', "[1]"])
def test_report_of_other_files(cli, tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, "utf-8")
    done = cli("bench", "report", path)
    assert done.code == 2
    assert "record" in done.err or "JSON" in done.err


@pytest.mark.parametrize(("segment", "length"), [(64, 1000), (128, 513), (256, 1024)])
def test_random_plans_have_their_density(segment, length):
    inputs = random_inputs(Shape(2, 4, 2, 16), length, torch.float32, torch.device("cpu"), seed=0)
    config = preset("pooled", segment=segment, window=16)
    plan = random_plan(inputs, 0.6, config, seed=0)
    assert abs(plan.density().mean() - 0.6) < 0.02
    masks = plan.to_dense(1, 3)
    assert plan.density()[1, 3] == masks.sum().double() / (length * (length + 1) // 2)
    with pytest.raises(InvalidInput, match="the window alone"):
        random_plan(inputs, 0.01, config, seed=0)
    with pytest.raises(InvalidConfig, match="need segments"):
        random_plan(inputs, 0.6, preset("paper"), seed=0)
    api.attend(inputs.q, inputs.k, inputs.v, plan)


@pytest.mark.gpu
def test_rows_of_a_gpu(cli, model_folder):
    command = ("bench", "attention", "--device", "cuda", "--seconds", "0", "--json", "--lengths")
    (row,) = rows_of(cli(*command, "2048", "--density", "0.4"))
    assert row["gpu"] == torch.cuda.get_device_name()
    assert (row["backend"], row["dtype"], row["heads"]) == ("triton", "bfloat16", 32)
    assert row["extra_bytes"] > 0
    assert row.keys() >= ROW - {"ms_floor", "matmul_gflops"}
    chosen = ("--config", "dense_prefix=128", "--config", "window=32", "--config",
              "tighten_below=none", "--config", "run_share=none", "--layers", "1")  # fmt: skip
    (row,) = rows_of(cli(*command, "700", "--input", f"captured:{model_folder}", *chosen))
    assert row["ms_total"] > 0
    assert row["density"] < 1
    rows = rows_of(
        cli("bench", "ttft", model_folder, "--device", "cuda", "--lengths", "700", "--json")
    )
    assert rows[-1]["method"] == "sample_attention"


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["default", "pooled", "paper", "mlsys"])
def test_kernels_of_a_gpu(cli, preset):
    rows = rows_of(
        cli("bench", "kernels", "--lengths", "4096", "--repeats", 2, "--preset", preset, "--json")
    )
    found = {row["kernel"]: row for row in rows if row["provider"] is None}
    assert found.keys() >= {"finite_check", "row_lse_rows", "attend", "whole select"}
    for name, row in found.items():
        assert 0 < row["ms_p20"] <= row["ms"] <= row["ms_p80"], name
        assert row["gap"] is None or row["gap"] > 0.5, name  # the cache may hold the data
    launches = [row["launches"] for row in rows if row["provider"] is None]
    whole = found["whole select"]["launches"] + found["whole attend"]["launches"]
    assert sum(launches) == 2 * whole  # the parts, and the wholes themselves
    assert 0 < found["attend"]["density"] <= 1
