"""Every command with every kind of broken input: one line that names it, and exit code 2."""

import json
import shutil

import pytest

from sample_attention.lab.records import BENCH, EVAL

MODEL_COMMANDS = {
    "run": ("run", "{model}", "{prompt}"),
    "inspect": ("inspect", "{model}", "{prompt}"),
    "ttft": ("bench", "ttft", "{model}", "--lengths", "300", "--device", "cpu"),
    "attention": ("bench", "attention", "--input", "captured:{model}", "--lengths", "300",
                  "--device", "cpu"),
    "eval": ("eval", "--model", "{model}", "--tasks", "needle", "--lengths", "300"),
    "tune": ("tune", "--model", "{model}", "--lengths", "300", "--requests", "4"),
}  # fmt: skip
RECORD_COMMANDS = {
    "report": ("bench", "report", "{records}"),
    "eval report": ("eval", "report", "{records}"),
    "eval": ("eval", "--output", "{records}"),
}  # fmt: skip
OUTPUT_COMMANDS = {
    **{name: (*command, "--output", "{output}") for name, command in MODEL_COMMANDS.items()},
    "demo": ("demo", "--output", "{output}"),
    "plot": ("bench", "report", "{records}", "--plot", "{output}.png"),
    "eval report": ("eval", "report", "{records}", "--output", "{output}"),
}
FILES_WRITTEN = ("ttft", "attention", "eval", "tune")
TUNED_COMMANDS = {
    **{name: (*MODEL_COMMANDS[name], "--preset", "{tuned}")
       for name in ("run", "inspect", "ttft", "attention")},
    "eval": (*MODEL_COMMANDS["eval"], "--method", "tuned:{tuned}"),
}  # fmt: skip


def one_line(done, *words):
    lines = done.err.strip().splitlines()
    assert done.code == 2
    assert [x for x in lines if x.startswith("error: ")] == lines[-1:]
    for word in words:
        assert str(word) in lines[-1]


def call(cli, command, **places):
    return cli(*(part.format(**places) for part in command))


def cut(name, size):
    def change(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])

    return change


def write(name, text):
    return lambda folder: (folder / name).write_text(text, "utf-8")


def configure(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")

    return change


MODELS = {
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights cut short": cut("model.safetensors", 1000),
    "empty weights": cut("model.safetensors", 0),
    "broken config": write("config.json", "{"),
    "config is a list": write("config.json", "[]"),
    "config without a type": write("config.json", "{}"),
    "config of another kind": configure(model_type="t5"),
    "config with a wrong value": configure(num_attention_heads="many"),
    "config of another size": configure(hidden_size=32),
    "config of more layers": configure(num_hidden_layers=5),
    "broken tokenizer": write("tokenizer.json", "{"),
    "tokenizer cut short": cut("tokenizer.json", 200),
    "empty tokenizer": write("tokenizer.json", "{}"),
    "tokenizer config is a list": write("tokenizer_config.json", "[1]"),
}


@pytest.fixture(scope="module")
def broken_models(tmp_path_factory, model_folder):
    """A folder for each kind of damage."""
    root = tmp_path_factory.mktemp("broken")
    for name, damage in MODELS.items():
        shutil.copytree(model_folder, root / name)
        damage(root / name)
    (root / "a folder").mkdir()
    (root / "a text").write_text("no model")
    (root / "cut.gguf").write_bytes(b"GGUF\x03\x00")
    return root


@pytest.mark.parametrize("command", MODEL_COMMANDS)
@pytest.mark.parametrize("kind", [*MODELS, "missing.gguf", "a folder", "a text", "cut.gguf"])
def test_broken_models(cli, broken_models, prompt_file, command, kind):
    model = broken_models / kind
    one_line(call(cli, MODEL_COMMANDS[command], model=model, prompt=prompt_file), model)


@pytest.mark.parametrize("command", ["run", "inspect"])
def test_broken_templates(cli, model_folder, prompt_file, tmp_path, command):
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    write("chat_template.jinja", "{{ raise_exception('no') }}")(model)
    one_line(
        call(cli, MODEL_COMMANDS[command], model=model, prompt=prompt_file), model, "--no-chat"
    )


@pytest.mark.parametrize("command", ["run", "inspect"])
@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\x00"])
def test_broken_prompts_are_found_before_the_model(cli, tmp_path, command, content):
    prompt = tmp_path / "prompt.txt"
    if content is not None:
        prompt.write_bytes(content)
    one_line(call(cli, MODEL_COMMANDS[command], model="no-such.gguf", prompt=prompt), prompt)
    one_line(call(cli, MODEL_COMMANDS[command], model="no-such.gguf", prompt=tmp_path), tmp_path)


@pytest.mark.parametrize("command", RECORD_COMMANDS)
@pytest.mark.parametrize("content", [b"{", b"[]", b"7", b"null", b"\xff", b"{}", b"\x00"])
def test_broken_records(cli, tmp_path, command, content):
    records = tmp_path / "records.jsonl"
    records.write_bytes(content + b"\n")
    one_line(call(cli, RECORD_COMMANDS[command], records=records), f"{records}:1")


@pytest.mark.parametrize("command", ["report", "eval report"])
def test_records_that_are_not_there(cli, tmp_path, command):
    for records in (tmp_path / "none.jsonl", tmp_path):
        one_line(call(cli, RECORD_COMMANDS[command], records=records), records)


@pytest.mark.parametrize("command", ["report", "eval report"])
@pytest.mark.parametrize("value", [None, "x", [], {}])
def test_records_of_wrong_values(cli, tmp_path, command, value):
    records = tmp_path / "records.jsonl"
    form = EVAL if command == "eval report" else BENCH
    row = dict.fromkeys((x for kind in form.kinds for x in kind), value)
    records.write_text(json.dumps(row), "utf-8")
    one_line(call(cli, RECORD_COMMANDS[command], records=records), records)


@pytest.mark.parametrize("command", OUTPUT_COMMANDS)
def test_outputs_that_cannot_be_written(cli, prompt_file, tmp_path, records, command):
    (tmp_path / "file").write_text("not a folder")
    output = tmp_path / "file" / "output"
    given = records["eval" if command == "eval report" else "bench"]
    places = {"model": "no-such.gguf", "prompt": prompt_file, "output": output, "records": given}
    done = call(cli, OUTPUT_COMMANDS[command], **places)
    one_line(done, tmp_path / "file")


@pytest.mark.parametrize("command", FILES_WRITTEN)
def test_folders_in_the_place_of_files(cli, tmp_path, command):
    done = call(cli, OUTPUT_COMMANDS[command], model="no-such.gguf", output=tmp_path)
    one_line(done, tmp_path)


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Files with a record of each kind."""
    folder = tmp_path_factory.mktemp("records")
    ttft = {
        "ttft_ms": 7.5,
        "model": "m",
        "method": "dense",
        "seq_len": 512,
        "device": "a CPU",
        "text": "t",
        "same_first_token": True,
    }
    score = {"model": "m", "length": 512, "task": "needle", "method": "dense", "setting": "",
             "n": 1, "score": 1.0, "scores": [1.0], "ci95": [1.0, 1.0], "density": 1.0}  # fmt: skip
    found = {"bench": folder / "bench.jsonl", "eval": folder / "eval.jsonl"}
    found["bench"].write_text(json.dumps(ttft), "utf-8")
    found["eval"].write_text(json.dumps(score), "utf-8")
    return found


@pytest.mark.parametrize("name", ["c.xyz", "c", "c.PNGG", ".png/c"])
def test_pictures_of_unknown_formats(cli, records, tmp_path, name):
    done = cli("bench", "report", records["bench"], "--plot", tmp_path / name)
    one_line(done, tmp_path / name, ".png")
    assert done.out == ""


@pytest.mark.parametrize("command", TUNED_COMMANDS)
@pytest.mark.parametrize("content", [None, "{", "[]", "{}", "null", '{"intervals": 7}', "\ufeff"])
def test_broken_tuned_files(cli, prompt_file, tmp_path, command, content):
    tuned = tmp_path / "tuned.json"
    if content is not None:
        tuned.write_text(content, "utf-8")
    done = call(cli, TUNED_COMMANDS[command], model="no-such.gguf", prompt=prompt_file, tuned=tuned)
    one_line(done, tuned)


@pytest.mark.parametrize("kind", ["longbench", "infinitebench"])
def test_broken_task_files(cli, model_folder, tmp_path, kind):
    path = tmp_path / ("hotpotqa.jsonl" if kind == "longbench" else "passkey.jsonl")
    for content in (None, "{", "[]", '{"dataset": "hotpotqa", "context": null, "input": "q"}', ""):
        if content is not None:
            path.write_text(content, "utf-8")
        done = cli("eval", "--model", model_folder, "--tasks", f"{kind}:{path}", "--lengths", 512,
                   "--device", "cpu")  # fmt: skip
        one_line(done, path)
