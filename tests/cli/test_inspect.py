"""`inspect`: plans and statistics of chosen layers."""

import json

import pytest


def test_statistics_of_chosen_layers(cli, model_folder, prompt_file, small):
    done = cli("inspect", model_folder, prompt_file, *small, "--layers", "0,2", "--json")
    assert done.code == 0, done.err
    report = done.json
    assert [x["layer"] for x in report["layers"]] == [0, 2]
    for layer in report["layers"]:
        assert [x["head"] for x in layer["heads"]] == [0, 1, 2, 3]
        assert not layer["sparse"]
        assert "sparse pays from" in layer["reason"]
        assert len(layer["drawings"]) == 1
        for head in layer["heads"]:
            least, p5, mean = (head[f"retained_mass_{x}"] for x in ("min", "p5", "mean"))
            assert 0 <= least <= min(p5, mean) <= max(p5, mean) <= 1
            assert 0 < head["density"] <= 1
            assert 0 <= head["sparsity_degree"] < 1


def test_drawn_heads_and_files(cli, model_folder, prompt_file, small, tmp_path):
    pytest.importorskip("matplotlib")
    done = cli("inspect", model_folder, prompt_file, *small, "--layers", 1, "--heads", "0,3",
               "--output", tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    assert "Layer 1, head 0" in done.out
    assert "Layer 1, head 3" in done.out
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"inspect.json", "heads.png", "layer01_head00.png", "layer01_head03.png"}
    assert json.loads((tmp_path / "inspect.json").read_text("utf-8"))["layers"][0]["layer"] == 1


def test_all_layers_and_heads(cli, model_folder, prompt_file, small, tmp_path):
    pytest.importorskip("matplotlib")
    done = cli("inspect", model_folder, prompt_file, *small, "--layers", "all", "--rows", 32,
               "--output", tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    assert "SD(0.945)" in done.out
    assert "means over heads" in done.out
    assert {path.name for path in tmp_path.iterdir()} == {"inspect.json", "heads.png"}
    report = json.loads((tmp_path / "inspect.json").read_text("utf-8"))
    assert report["rows"] == 32
    assert [x["layer"] for x in report["layers"]] == [0, 1, 2]
    for layer in report["layers"]:
        degrees = [x["sparsity_degree"] for x in layer["heads"]]
        assert len(degrees) == 4
        assert f"{sum(degrees) / 4:.3f}" in done.out
        assert f"{min(degrees):.3f}" in done.out


def test_default_layers_are_first_middle_and_last(cli, model_folder, prompt_file, small):
    layers = cli("inspect", model_folder, prompt_file, *small, "--json").json["layers"]
    assert [x["layer"] for x in layers] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "7"], "no layer 7; accepted: 0 to 2"),
        (["--layers", "a"], "commas"),
        (["--layers", ""], "commas"),
        (["--heads", "4"], "no head 4; accepted: 0 to 3"),
    ],
)
def test_bad_choices_are_one_line(cli, model_folder, prompt_file, options, words):
    done = cli("inspect", model_folder, prompt_file, *options)
    assert done.code == 2
    assert words in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
