"""Greedy generation with its time to first token (TTFT): the prefill and one step."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..api import attend, select
from ..config import Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARM_UP_TOKENS = 512
"""Length of the prefill that `warm_up` makes."""

WARM_UP_KEYS = 2048
"""Keys of the random tensors that `warm_up` selects from and attends to."""


@dataclass(frozen=True)
class Generation:
    """A greedy continuation.

    Attributes:
        token_ids: the new tokens, without the one that ends the text.
        ttft_s: seconds from the prompt's tokens to the first new token, selection included.
        decode_s: seconds for the tokens after the first.
    """

    token_ids: tuple[int, ...]
    ttft_s: float
    decode_s: float


@torch.inference_mode()
def generate_greedily(
    model: PreTrainedModel, token_ids: Tensor, max_new_tokens: int,
    on_token: Callable[[], None] | None = None,
) -> Generation:  # fmt: skip
    """Continue a prompt with the likeliest token at each step.

    Args:
        model: a causal language model in evaluation mode.
        token_ids: int64 `[1, S]` on the model's device.
        max_new_tokens: stop after this many, or at the token that ends the text.
        on_token: called after every new token.
    """
    forward: Any = model
    _wait(token_ids.device)
    start = time.perf_counter()
    result = forward(input_ids=token_ids, use_cache=True, **last_logits(model))
    token = int(result.logits[0, -1].argmax())  # waits for the device
    first = time.perf_counter()
    written = continue_greedily(model, result.past_key_values, token, max_new_tokens, on_token)
    return Generation(written, first - start, time.perf_counter() - first)


@torch.inference_mode()
def continue_greedily(
    model: PreTrainedModel, cache: object, token: int, max_new_tokens: int,
    on_token: Callable[[], None] | None = None,
    enough: Callable[[Sequence[int]], bool] = lambda _: False,
) -> tuple[int, ...]:  # fmt: skip
    """Write on from a cache, which grows: `token` and what follows it.

    Args:
        model: a causal language model in evaluation mode.
        cache: the keys and values of the text so far, one sequence.
        token: the first new token.
        max_new_tokens: stop after this many, or at the token that ends the text, left out.
        on_token: called after every new token.
        enough: whether to stop after these new tokens already.
    """
    forward: Any = model
    ends, keywords = end_tokens(model), last_logits(model)
    written: list[int] = []
    while token not in ends:
        written.append(token)
        if on_token is not None:
            on_token()
        if len(written) >= max_new_tokens or enough(written):
            break
        step = torch.tensor([[token]], device=model.device)
        result = forward(input_ids=step, past_key_values=cache, use_cache=True, **keywords)
        cache, token = result.past_key_values, int(result.logits[0, -1].argmax())
    return tuple(written)


@torch.inference_mode()
def prefill(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """One pass over a prompt, int64 `[1, S]`, without a cache: the last row's logits `[V]`."""
    forward: Any = model
    result = forward(input_ids=token_ids, use_cache=False, **last_logits(model))
    return result.logits[0, -1]


@torch.inference_mode()
def warm_up(model: PreTrainedModel, token_ids: Tensor, config: Config) -> None:
    """Pay the costs of first calls: threads, kernels and imports, of both ways to attend.

    Makes a short prefill, and one sparse attention over random tensors shaped like the model's.
    """
    prefill(model, token_ids[:, :WARM_UP_TOKENS])
    text: Any = model.config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    q = torch.randn(1, heads, WARM_UP_KEYS, dim, dtype=model.dtype, device=token_ids.device)
    k = q[:, :kv_heads] * 0.5
    attend(q, k, k, select(q, k, config))
    _wait(token_ids.device)


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a text, as the model's generation configuration lists them."""
    configured: Any = getattr(model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = getattr(model.config, "eos_token_id", None)
    if configured is None:
        return frozenset()
    return frozenset(configured if isinstance(configured, list) else [configured])


def last_logits(model: PreTrainedModel, count: int = 1) -> dict[str, int]:
    """Ask for the logits of the last rows alone: those of all rows can take gigabytes."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in known else {}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
