"""The tokenizer that is stored in a GGUF file, as a transformers fast tokenizer.

Byte-level BPE vocabularies (`tokenizer.ggml.model` = `gpt2`) name the way text is cut before
merging in `tokenizer.ggml.pre`; `PRE_TOKENIZERS` holds the ones that are known here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Final

from ..._extras import require
from .gguf_header import GGUFHeader, UnsupportedGGUF
from .gguf_keys import check_tokenizer_keys

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_CONTROL_TOKEN: Final = 3
_USER_TOKEN: Final = 4
_NAMED_TOKENS: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}
_QWEN2_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_gguf_tokenizer(header: GGUFHeader) -> PreTrainedTokenizerBase:
    """Build the tokenizer of a GGUF file, with its special tokens and chat template.

    Raises:
        UnsupportedGGUF: not a byte-level BPE vocabulary, an unknown pre-tokenizer or metadata
            key, or a special token that the vocabulary does not have.
        MissingExtra: `transformers` is not installed.
    """
    transformers = require("transformers", "transformers")
    backend = _backend(header)
    tokens = header.strings("tokenizer.ggml.tokens")
    named: dict[str, str] = {}
    for name, key in _NAMED_TOKENS.items():
        if (token_id := header.token_id(key)) is not None:
            named[name] = tokens[token_id]
    architecture = header.architecture
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=header.integer(f"{architecture}.context_length"),
        clean_up_tokenization_spaces=False,
        **named,
    )
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        tokenizer.chat_template = template
    return tokenizer


def _backend(header: GGUFHeader) -> Tokenizer:
    tokenizers = require("tokenizers", "transformers")
    kind = header.metadata.get("tokenizer.ggml.model")
    pre = header.metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise UnsupportedGGUF(
            f"{header.path} has a tokenizer of model '{kind}' with pre-tokenizer '{pre}'; "
            f"model 'gpt2' with one of {sorted(PRE_TOKENIZERS)} is read; "
            "give a transformers folder or hub id instead"
        )
    check_tokenizer_keys(header)
    tokens = header.strings("tokenizer.ggml.tokens")
    merges = [pair.partition(" ") for pair in header.strings("tokenizer.ggml.merges")]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[(left, right) for left, _, right in merges],
        )
    )
    PRE_TOKENIZERS[str(pre)](backend, tokenizers)
    backend.decoder = tokenizers.decoders.ByteLevel()
    types = header.integers("tokenizer.ggml.token_type")
    for wanted, special in ((_CONTROL_TOKEN, True), (_USER_TOKEN, False)):
        added = [
            tokenizers.AddedToken(token, normalized=False, special=special)
            for token, kind_id in zip(tokens, types, strict=False)
            if kind_id == wanted
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    if header.metadata.get("tokenizer.ggml.add_bos_token", False):
        _begin_with_bos(backend, header, tokens)
    return backend


def _begin_with_bos(backend: Tokenizer, header: GGUFHeader, tokens: list[str]) -> None:
    tokenizers = require("tokenizers", "transformers")
    bos = header.token_id("bos_token_id")
    if bos is None:
        raise UnsupportedGGUF(
            f"{header.path} asks for a first token (add_bos_token) and names none (bos_token_id)"
        )
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=[tokens[bos], "$A"], pair=[tokens[bos], "$A", tokens[bos], "$B"],
        special_tokens=[(tokens[bos], bos)],
    )  # fmt: skip


def _cut_as_smollm(backend: Tokenizer, tokenizers: ModuleType) -> None:
    pre = tokenizers.pre_tokenizers
    backend.pre_tokenizer = pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def _cut_as_qwen2(backend: Tokenizer, tokenizers: ModuleType) -> None:
    pre = tokenizers.pre_tokenizers
    backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = pre.Sequence(
        [
            pre.Split(tokenizers.Regex(_QWEN2_PATTERN), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS: Final[dict[str, Callable[[Tokenizer, ModuleType], None]]] = {
    "smollm": _cut_as_smollm,
    "qwen2": _cut_as_qwen2,
}
