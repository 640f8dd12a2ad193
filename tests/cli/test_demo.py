"""`demo`, with a tiny model in the place of the real one (`make demo` runs that)."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("sparse_early")


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch, loaded_tiny):
    monkeypatch.setattr("sample_attention.cli.demo.fetch_weights", lambda _: None)
    monkeypatch.setattr("sample_attention.cli.demo.load", lambda *_: loaded_tiny)


def test_demo_writes_its_report_and_explains(cli, small, tmp_path):
    done = cli("demo", "--tokens", 600, *small, "--output", tmp_path)
    assert done.code == 0, done.err
    for words in ("right answer:", "Time: ", "Attention: ", "time to first token"):
        assert words in done.out
    for number in range(1, 5):
        assert f"{number}/4" in done.err
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert 550 <= report["prompt_tokens"] <= 600
    assert "timed once" in done.out
    assert report["right_answer"].keys() == report["methods"].keys()
    assert (tmp_path / "report.png").is_file()


def test_demo_json_is_all_of_stdout(cli, small, tmp_path):
    done = cli("demo", "--tokens", 400, *small, "--output", tmp_path, "--json")
    assert done.json["expected_answer"].isdecimal()
