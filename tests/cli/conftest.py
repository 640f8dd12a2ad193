"""A tiny random Llama with a word tokenizer in a folder, and `main` as a function of its output."""

import json

import pytest

pytest.importorskip("typer")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

import torch  # noqa: E402

from sample_attention.cli import main  # noqa: E402
from sample_attention.lab.models import load_model  # noqa: E402
from sample_attention.routing import policy  # noqa: E402

CONTEXT = 1024
WORDS = [f"w{i}" for i in range(60)]
LAYERS, HEADS = 3, 4


class Outcome:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def cli(capsys):
    """Call the command; gives exit code, stdout and stderr."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Weights large enough for attention to be uneven, so that plans are sparse."""
    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<end>", *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=64, intermediate_size=64,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=2,
            max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=1,
        )
    )  # fmt: skip
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.normal_(std=0.3)
            layer.self_attn.k_proj.weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory):
    """700 tokens."""
    generator = torch.Generator().manual_seed(1)
    picks = torch.randint(len(WORDS), (700,), generator=generator).tolist()
    path = tmp_path_factory.mktemp("prompt") / "prompt.txt"
    path.write_text(" ".join(WORDS[i] for i in picks), "utf-8")
    return path


@pytest.fixture
def sparse_early(monkeypatch):
    """Sparse attention pays from 256 keys, as far as the policy knows."""
    monkeypatch.setitem(policy.CROSSOVERS, "cpu", policy.Crossover(256, 64, "set by a test"))


SMALL = ("--config", "dense_prefix=128", "--config", "window=32", "--config", "tighten_below=none",
         "--config", "run_share=none", "--threads", "1")  # fmt: skip


@pytest.fixture
def small():
    """Options that make plans of short prompts sparse."""
    return SMALL


@pytest.fixture
def loaded_tiny(model_folder):
    return load_model(model_folder)
