"""The command as a whole: help, errors in one line, exit codes."""

import os
import subprocess
import sys

import pytest

import sample_attention
from sample_attention.cli import main


@pytest.mark.parametrize("command", [
    (), ("run",), ("inspect",), ("doctor",), ("demo",),
    ("bench",), ("bench", "attention"), ("bench", "ttft"), ("bench", "report"),
])  # fmt: skip
def test_help(cli, command):
    done = cli(*command, "--help")
    assert done.code == 0
    assert "Usage" in done.out


def test_help_imports_no_model_library():
    probe = (
        "import sys\nfrom sample_attention.cli import main\nmain(['run', '--help'])\n"
        "print([m for m in ('transformers', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def one_line(done, *words):
    lines = done.err.strip().splitlines()
    assert done.code == 2
    assert done.out == ""
    assert [x for x in lines if x.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in done.err
    for word in words:
        assert word in lines[-1]


def test_unknown_model(cli, prompt_file, tmp_path):
    one_line(cli("run", tmp_path / "none.gguf", prompt_file), "none.gguf", "accepted are")


def test_missing_prompt_file(cli, model_folder, tmp_path):
    one_line(cli("run", model_folder, tmp_path / "none.txt"), "none.txt", "No such file")


def test_folder_as_prompt_file(cli, model_folder, tmp_path):
    one_line(cli("run", model_folder, tmp_path), "directory")


def test_prompt_that_is_no_text(cli, model_folder, tmp_path):
    (tmp_path / "prompt").write_bytes(b"\xff\xfe\x00")
    one_line(cli("run", model_folder, tmp_path / "prompt"), "not UTF-8")


def test_empty_prompt(cli, model_folder, tmp_path):
    (tmp_path / "prompt").write_text(" \n")
    one_line(cli("run", model_folder, tmp_path / "prompt"), "empty")


def test_prompt_too_long(cli, model_folder, prompt_file):
    done = cli("run", model_folder, prompt_file, "--max-new-tokens", 325)
    one_line(done, "700 tokens", "325 new", "1024 together")


def test_output_that_cannot_be_made(cli, model_folder, prompt_file):
    one_line(cli("run", model_folder, prompt_file, "--output", prompt_file / "x"), "prompt.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coverage", "0"], ["coverage", "(0, 1]"]),
        (["--coverage", "1.5"], ["coverage", "1.5"]),
        (["--coverage", "much"], ["coverage"]),
        (["--preset", "best"], ["'best'", "default, fast, mlsys, paper, pooled"]),
        (["--config", "windows=3"], ["windows=3", "window"]),
        (["--config", "window"], ["KEY=VALUE"]),
        (["--config", "window=wide"], ["window=wide", "number"]),
        (["--config", "window=0"], ["window"]),
        (["--config", "window=1.5"], ["window", "integer"]),
        (["--dtype", "int8"], ["int8", "bfloat16"]),
        (["--device", "tpu"], ["tpu", "cuda"]),
        (["--threads", "0"], ["threads"]),
        (["--max-new-tokens", "0"], ["max-new-tokens"]),
        (["--chat"], ["chat template"]),
        (["--no-such-option"], ["no-such-option"]),
    ],
)
def test_bad_options(cli, model_folder, prompt_file, options, words):
    one_line(cli("run", model_folder, prompt_file, *options), *words)


def test_too_many_tokens_for_the_demo_model(cli, monkeypatch, loaded_tiny):
    monkeypatch.setattr("sample_attention.cli.demo.fetch_weights", lambda _: None)
    monkeypatch.setattr("sample_attention.cli.demo.load", lambda *_: loaded_tiny)
    one_line(cli("demo", "--tokens", 1000), "--tokens 1000", "992")


def test_unknown_command_and_missing_argument(cli):
    one_line(cli("sing"), "sing")
    one_line(cli("run"), "--help")


def test_missing_extra(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    one_line(cli("doctor"), "typer", "pip install '.[demo]'")


def test_missing_plot_extra_is_found_before_the_model_is_loaded(
    cli, monkeypatch, prompt_file, tmp_path
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = cli("run", "no-such-model.gguf", prompt_file, "--output", tmp_path)
    one_line(done, "'.[plot]'")


def test_interruption_is_quiet(monkeypatch, capsys):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sample_attention.cli.doctor.doctor", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "")


def test_the_program_exits_with_the_code_of_main():
    program = [
        sys.executable,
        "-c",
        "import sys; from sample_attention.cli import main; sys.exit(main())",
    ]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*program, "run", "no/such-model", __file__], capture_output=True, text=True, check=False,
        env=quiet,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: cannot load the model 'no/such-model'")


def test_without_a_command_help_is_printed_and_no_error(cli):
    done = cli()
    assert "Usage" in done.out
    assert done.err == ""


def test_version(cli):
    assert cli("--version").out == f"sample-attention {sample_attention.__version__}\n"
