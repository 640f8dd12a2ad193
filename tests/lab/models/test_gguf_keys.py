"""Every metadata key of a GGUF file is read, known to change nothing, or refused."""

from pathlib import Path

import gguf
import pytest

from sample_attention.lab.models import gguf_keys
from sample_attention.lab.models.gguf import model_config
from sample_attention.lab.models.gguf_header import GGUFHeader, UnsupportedGGUF, read_gguf_header
from sample_attention.lab.models.gguf_keys import check_network_keys, check_tokenizer_keys

HEAD_DIM = 16
STRANGE = 12345


def names_of(keys):
    """The keys of a class of the `gguf` package, those of classes within it too."""
    parts = [value for name, value in vars(keys).items() if not name.startswith("_")]
    return [x for part in parts for x in (names_of(part) if isinstance(part, type) else [part])]


NETWORK = sorted(
    key.removeprefix("{arch}.")
    for owner in (gguf.Keys.Rope, gguf.Keys.Attention, gguf.Keys.LLM)
    for key in names_of(owner)
)
TOKENIZER = sorted(
    key.removeprefix("tokenizer.ggml.")
    for key in names_of(gguf.Keys.Tokenizer)
    if key.startswith("tokenizer.ggml.")
)
LEGACY = ["rope.scale_linear", "attention.some_later_kind", "some_later_kind"]


def check(key, value):
    owner = "tokenizer.ggml" if key in TOKENIZER else "llama"
    metadata = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["x"] * (STRANGE + 1)}
    metadata[f"{owner}.{key}"] = value
    header = GGUFHeader(Path("m.gguf"), metadata, {})
    if owner == "llama":
        check_network_keys(header, HEAD_DIM)
    else:
        check_tokenizer_keys(header)


ACCEPTED = (
    gguf_keys.READ | gguf_keys.HARMLESS | gguf_keys.TOKENIZER_READ | gguf_keys.TOKENIZER_HARMLESS
)
VALUES = {
    **gguf_keys.NEUTRAL, **gguf_keys.TOKENIZER_NEUTRAL,
    **dict.fromkeys(gguf_keys.SIZES, (HEAD_DIM,)),
}  # fmt: skip


@pytest.mark.parametrize("key", [*NETWORK, *TOKENIZER, *LEGACY])
def test_a_key_is_read_or_harmless_or_refused(key):
    if key in ACCEPTED:
        check(key, STRANGE)
        return
    with pytest.raises(UnsupportedGGUF, match=rf"m\.gguf has {STRANGE} .*{key}"):
        check(key, STRANGE)
    for value in VALUES.get(key, ()):
        check(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.factor", 4.0), ("rope.scale_linear", 4.0), ("rope.scaling.type", "linear"),
        ("rope.scaling.type", "yarn"), ("rope.dimension_count", 8), ("attention.causal", False),
        ("attention.value_length", 8), ("attention.sliding_window", 4096),
        ("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0),
        ("rope.dimension_sections", [1, 2]), ("add_eos_token", True), ("add_space_prefix", True),
    ],
)  # fmt: skip
def test_values_that_change_the_result_are_refused(key, value):
    with pytest.raises(UnsupportedGGUF, match=key):
        check(key, value)


@pytest.mark.parametrize("key", sorted(gguf_keys.READ))
def test_what_is_read_reaches_the_configuration(tiny, key):
    header = read_gguf_header(tiny.path)
    before = model_config(header).to_dict()
    name = f"{header.architecture}.{key}"
    header.metadata[name] = 2 * header.metadata.get(name, HEAD_DIM)
    assert model_config(header).to_dict() != before


@pytest.mark.parametrize("key", [x for x in TOKENIZER if x.endswith("token_id")])
@pytest.mark.parametrize("value", [600, -1, 2**32 - 1, "x", True, [1]])
def test_tokens_outside_the_vocabulary_are_refused(tiny, key, value):
    header = read_gguf_header(tiny.path)
    header.metadata[f"tokenizer.ggml.{key}"] = value
    header.metadata["tokenizer.ggml.tokens"] = header.strings("tokenizer.ggml.tokens")[:600]
    with pytest.raises(UnsupportedGGUF, match=rf"{key}.* 600 tokens"):
        check_tokenizer_keys(header)
