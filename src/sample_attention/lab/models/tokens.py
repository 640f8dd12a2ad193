"""From text to the tokens that a model reads: the one place that knows about special tokens.

What a model reads begins with what its tokenizer puts before a text, as `<s>`. A chat template
writes that itself. What a tokenizer puts behind a text would end it, and is left off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedPrompt(NamedTuple):
    """A prompt as text and as tokens.

    Attributes:
        text: with the chat template applied, without what the tokenizer puts before it.
        token_ids: what a model reads.
    """

    text: str
    token_ids: tuple[int, ...]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The tokens of a part of a text, without special ones around it."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def start_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text; mostly one or none."""
    around = list(tokenizer("a", verbose=False)["input_ids"])
    return tuple(around[: around.index(encode(tokenizer, "a")[0])])


def encode_passage(
    tokenizer: PreTrainedTokenizerBase, text: str, length: int | None = None
) -> tuple[int, ...]:
    """The tokens of a plain text from its start, at most `length` with those before it."""
    return (*start_tokens(tokenizer), *encode(tokenizer, text))[:length]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, content: str, lead: str = "", *, chat: bool = True
) -> EncodedPrompt:
    """The words of the user, then the beginning of the answer.

    Args:
        tokenizer: makes the tokens.
        content: what the user says.
        lead: how the answer begins; without a template it gets a line of its own.
        chat: apply the chat template, if there is one.

    Raises:
        InvalidInput: the chat template cannot be applied.
    """
    if chat and tokenizer.chat_template is not None:
        text = _as_chat(tokenizer, content) + lead
        return EncodedPrompt(text, encode(tokenizer, text))
    text = f"{content}\n{lead}" if lead else content
    return EncodedPrompt(text, encode_passage(tokenizer, text))


def _as_chat(tokenizer: PreTrainedTokenizerBase, content: str) -> str:
    messages = [{"role": "user", "content": content}]
    try:
        chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of others: it may raise anything
        raise InvalidInput(
            f"the chat template of the tokenizer '{tokenizer.name_or_path}' cannot be applied to "
            f"one turn of the user ({type(error).__name__}: {error}); correct the template, or "
            "leave it out (on the command line: --no-chat)"
        ) from error
    return str(chat)
