"""Ways of calling a model: each gives logits (and tokens) that can be compared between two runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from zoo_models import SEED

LENGTH, SHORT, TURN, NEW = 60, 37, 28, 5
"""Tokens of a prompt, of the shorter sequence of a batch, of a first turn or chunk; new ones."""

MASKED = {"moshi"}
"""Types whose eager attention is not causal without a mask."""

Case = Callable[[Any], "Answer"]


class NotOffered(Exception):
    """The model has no such way of being called."""


@dataclass(frozen=True)
class Answer:
    """What a call gives.

    Attributes:
        logits: `[R, T, V]`, of R sequences.
        tokens: int64 `[R, T]`, what was generated from them; None: nothing was.
    """

    logits: Tensor
    tokens: Tensor | None = None


def distance(given: Answer, expected: Answer) -> float:
    """The largest root mean square over the vocabulary of a difference, over the logits' spread.

    Of generated tokens those up to the first that differs count: later ones answer other prompts.
    """
    error = (given.logits - expected.logits).double().square().mean(-1).sqrt()
    if given.tokens is not None and expected.tokens is not None:
        differs = (given.tokens != expected.tokens).int().cumsum(1)
        error = error[(differs - (given.tokens != expected.tokens).int()) == 0]
    worst = error.max() / expected.logits.double().std()
    return float(worst) if bool(error.isfinite().all()) else float("inf")


def _ids(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(3, 90, (2, LENGTH), generator=generator)[:batch]


def _padded(side: str, length: int = LENGTH, short: int = SHORT) -> tuple[Tensor, Tensor]:
    """Two sequences, the second shorter, with their mask."""
    place, ids = torch.arange(length), _ids()[:, :length]
    lengths = torch.tensor([[length], [short]])
    mask = place >= length - lengths if side == "left" else place < lengths
    return ids.masked_fill(~mask, 0), mask.long()


def _logits(model: Any, ids: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
    return _called(model, ids, **options).logits.float()


def _called(model: Any, ids: Tensor, **options: Any) -> Any:  # noqa: ANN401
    if model.config.is_encoder_decoder and "decoder_input_ids" in _parameters(model):
        options["decoder_input_ids"] = ids
    if model.config.model_type in MASKED:
        seen = ids.shape[1] + getattr(options.get("past_key_values"), "get_seq_length", int)()
        options.setdefault("attention_mask", torch.ones(len(ids), seen).long())
    return model(input_ids=ids, **options)


def prefill(model: Any) -> Answer:  # noqa: ANN401
    """One prompt."""
    return Answer(_logits(model, _ids(1)))


def changed_end(model: Any) -> Answer:  # noqa: ANN401
    """The prompt of `prefill` with another last token, which no earlier row may see."""
    ids = _ids(1).clone()
    ids[0, -1] = 93 - ids[0, -1]
    return Answer(_logits(model, ids)[:, :-1])


def _padded_prefill(model: Any, side: str) -> Answer:  # noqa: ANN401
    ids, mask = _padded(side)
    return Answer(_logits(model, ids, attention_mask=mask)[mask.bool()][None])


def left_padded(model: Any) -> Answer:  # noqa: ANN401
    """Two sequences with padding before the shorter one."""
    return _padded_prefill(model, "left")


def right_padded(model: Any) -> Answer:  # noqa: ANN401
    """Two sequences with padding after the shorter one."""
    return _padded_prefill(model, "right")


def _generated(
    model: Any, ids: Tensor, mask: Tensor, new: int = NEW, **options: Any  # noqa: ANN401
) -> tuple[Answer, Any]:  # fmt: skip
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, num_beams=1,
        eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        **options,
    )  # fmt: skip
    logits = torch.stack(out.logits, 1).float()
    return Answer(logits, out.sequences[:, -logits.shape[1] :]), out


def generate(model: Any) -> Answer:  # noqa: ANN401
    """New tokens of one prompt."""
    return _generated(model, _ids(1), torch.ones_like(_ids(1)))[0]


def generate_left_padded(model: Any) -> Answer:  # noqa: ANN401
    """New tokens of two sequences."""
    return _generated(model, *_padded("left"))[0]


def static_left_padded(model: Any) -> Answer:  # noqa: ANN401
    """New tokens of two sequences, with a cache of fixed size."""
    options = {"cache_implementation": "static", "disable_compile": True}
    return _generated(model, *_padded("left"), **options)[0]


def chunked(model: Any) -> Answer:  # noqa: ANN401
    """A prompt in two calls, the second with the cache of the first."""
    first, second = _ids(1).split([TURN, LENGTH - TURN], 1)
    out = _called(model, first, use_cache=True)
    cache = getattr(out, "past_key_values", None)
    if cache is None:
        raise NotOffered("the model returns no past_key_values")
    rest = _logits(model, second, past_key_values=cache, use_cache=True)
    return Answer(torch.cat([out.logits.float(), rest], 1))


def packed(model: Any) -> Answer:  # noqa: ANN401
    """Two sequences in one row, told apart by positions that start again."""
    _offered(model, "position_ids")
    positions = torch.cat([torch.arange(n) for n in (SHORT, LENGTH - SHORT)])[None]
    return Answer(_logits(model, _ids(1), position_ids=positions, use_cache=False))


def packed_alone(model: Any) -> Answer:  # noqa: ANN401
    """What `packed` means: each of its sequences alone."""
    parts = [
        _logits(model, x, position_ids=torch.arange(x.shape[1])[None], use_cache=False)
        for x in _ids(1).split([SHORT, LENGTH - SHORT], 1)
    ]
    return Answer(torch.cat(parts, 1))


def _two_turns(model: Any, ids: Tensor, mask: Tensor) -> Answer:  # noqa: ANN401
    first, out = _generated(model, ids, mask, 2, use_cache=True)
    cache = out.past_key_values
    if cache is None:
        raise NotOffered("generate returns no past_key_values")
    added = _ids(len(ids))[:, TURN:]
    whole = torch.cat([out.sequences, added], 1)
    wide = torch.cat([mask, torch.ones(len(ids), whole.shape[1] - mask.shape[1]).long()], 1)
    second, _ = _generated(model, whole, wide, past_key_values=cache, use_cache=True)
    both = [(x.logits, x.tokens) for x in (first, second)]
    logits, tokens = (torch.cat(x, 1) for x in zip(*both, strict=True))
    return Answer(logits, tokens)


def second_turn(model: Any) -> Answer:  # noqa: ANN401
    """New tokens of a prompt that continues a generation, with its cache."""
    ids = _ids(1)[:, :TURN]
    return _two_turns(model, ids, torch.ones_like(ids))


def second_turn_left_padded(model: Any) -> Answer:  # noqa: ANN401
    """The same for two sequences, of which one began later."""
    return _two_turns(model, *_padded("left", TURN, TURN // 2))


def token_types(model: Any) -> Answer:  # noqa: ANN401
    """One prompt with `token_type_ids` of zeros, as tokenizers and processors return them."""
    _offered(model, "token_type_ids")
    return Answer(_logits(model, _ids(1), token_type_ids=torch.zeros_like(_ids(1))))


def cross_attention(model: Any) -> Answer:  # noqa: ANN401
    """One prompt beside the states of an image or an encoder, which all rows see."""
    states = torch.randn(1, LENGTH + 10, 64, generator=torch.Generator().manual_seed(SEED))
    names = ("cross_attention_states", "encoder_hidden_states")
    name = next((n for n in names if n in _parameters(model)), names[0])
    _offered(model, name)
    return Answer(_logits(model, _ids(1), **{name: states.to(model.dtype)}))


def _parameters(model: Any) -> Mapping[str, inspect.Parameter]:  # noqa: ANN401
    return inspect.signature(type(model).forward).parameters


def _offered(model: Any, name: str) -> None:  # noqa: ANN401
    if name not in _parameters(model):
        raise NotOffered(f"forward takes no {name}")


CASES: dict[str, Case] = {
    "prefill": prefill, "left-padded": left_padded, "right-padded": right_padded,
    "generate": generate, "generate left-padded": generate_left_padded,
    "static cache left-padded": static_left_padded, "chunked": chunked, "packed": packed,
    "second turn": second_turn, "second turn left-padded": second_turn_left_padded,
}  # fmt: skip
"""In fp32; `bf16` is `prefill` again."""

OPTIONAL: dict[str, Case] = {"token types": token_types, "cross attention": cross_attention}
"""Only where the model has them and eager attention computes them."""
