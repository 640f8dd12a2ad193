"""The tokenizer of a GGUF file cuts text as the one that the file was made of."""

import pytest
import tokenizers

from sample_attention.lab.models import load_model, reference_text
from sample_attention.lab.models.gguf_header import UnsupportedGGUF, read_gguf_header
from sample_attention.lab.models.gguf_tokenizer import load_gguf_tokenizer
from sample_attention.lab.models.tokens import start_tokens

TEXTS = [
    reference_text()[:5000],
    "Zażółć gęślą jaźń — naïve café, e\u0301; Ωμέγα Привет 你好 こんにちは 👩‍💻 נ ½ ²",
    "for i in range(10):\n    if i % 2:\n\t\tprint(f'{i:>3}', end=\"\\n\")\r\n\r\n",
    "1234567890 3.14159 0x7fff 1,000,000 v2.5.1",
    "  a\t\tb\n\n\n  c  \r\n d   ",
    "x  1   22",
    "don't I'LL we'Ve",
    "<|im_start|>user\nhi<|im_end|>\n",
    " ",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_gguf_tokenizer(read_gguf_header(tiny.path))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_tokens_equal_those_of_the_source(tiny, tokenizer, text):
    assert tokenizer(text)["input_ids"] == tiny.backend.encode(text).ids


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_decoding_returns_the_text(tokenizer, text):
    normalizer = tokenizer.backend_tokenizer.normalizer
    expected = normalizer.normalize_str(text) if normalizer else text
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == expected


def test_special_tokens_and_template_come_from_the_file(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(chat)["input_ids"], skip_special_tokens=True) == (
        "user\nhi\nassistant\n"
    )


@pytest.mark.parametrize("wanted", [True, False])
def test_the_first_token_is_as_the_file_says(write_llama, wanted):
    tokenizer = load_model(write_llama(lambda writer: writer.add_add_bos_token(wanted))).tokenizer
    front = [tokenizer.bos_token_id] * wanted
    plain = tokenizer("some text", add_special_tokens=False)["input_ids"]
    assert tokenizer("some text")["input_ids"] == [*front, *plain]
    assert start_tokens(tokenizer) == tuple(front)


def test_a_first_token_without_a_name_is_refused(write_llama):
    header = read_gguf_header(write_llama(lambda writer: writer.add_add_bos_token(True)))
    del header.metadata["tokenizer.ggml.bos_token_id"]
    with pytest.raises(UnsupportedGGUF, match="bos_token_id"):
        load_gguf_tokenizer(header)


def test_digits_stand_alone_in_smollm():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    from sample_attention.lab.models.gguf_tokenizer import PRE_TOKENIZERS

    PRE_TOKENIZERS["smollm"](backend, tokenizers)
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("a  12 b")]
    assert pieces == ["a", "ĠĠ", "1", "2", "Ġb"]


def test_unknown_pre_tokenizers_are_refused(write_llama):
    path = write_llama()
    header = read_gguf_header(path)
    header.metadata["tokenizer.ggml.pre"] = "somebody-else"
    with pytest.raises(UnsupportedGGUF, match="somebody-else"):
        load_gguf_tokenizer(header)


@pytest.mark.model
@pytest.mark.slow
def test_smollm2_tokens_equal_those_of_transformers(smollm2_path):
    """Where transformers is right: its GGUF path does not cut at digits, so none after spaces."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name
    )
    ours = load_model(smollm2_path).tokenizer
    for text in TEXTS:
        plain = "".join(" " if c.isnumeric() else c for c in text).replace("  ", " ")
        assert ours(plain)["input_ids"] == theirs(plain)["input_ids"]
    assert ours.vocab_size == theirs.vocab_size
