"""SampleAttention as an attention implementation of Hugging Face transformers.

`register()` makes `attn_implementation="sample_attention"` known; `sample_attention_prefill(model)`
uses it for a while, also for continuous batching. Long prompts run sparse, everything else exactly
as the model defines it, or it is refused with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .._extras import require
from ..errors import UnsupportedAttention
from ..routing.policy import Policy, check_policy
from ..selection.rule import Rule, as_rule, rule_in_layer
from .arguments import layer_of, layout_of_call, refuse, rows_of_call, unsupported
from .layers import LayerCall, compute
from .layout import (
    Layout,
    Rows,
    in_chunks,
    layout_of_mask,
    layout_of_packed,
    recall_layout,
    remember_layout,
    rows_of_holes,
)
from .masks import read_mask_function
from .recording import LayerStatistics, Recorder
from .sessions import close_session, open_session, session_of
from .support import BATCHED, NAME, refuse_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["NAME", "LayerStatistics", "Recorder", "register", "sample_attention_prefill"]


class Choice(NamedTuple):
    """What the attention of all models is told when it is registered."""

    config: Rule
    policy: Policy = "auto"


def register(config: Rule | str = "default", *, policy: Policy = "auto") -> None:
    """Make the implementation known to transformers; again with another `config` replaces that.

    Args:
        config: how keys are selected, for every model that has no context manager of its own.
        policy: as for `sample_attention`.

    Raises:
        InvalidConfig: unknown preset, tuned configuration or policy.
        MissingExtra: transformers is not installed.
    """
    check_policy(policy)
    choice = Choice(as_rule(config), policy)
    interfaces: Any = require("transformers", "transformers")
    # What is read from masks depends on their values, which a compiled graph does not know.
    eagerly: Any = torch.compiler.disable
    forward, paged, batched = (
        eagerly(partial(function, choice)) for function in (_attention, _paged, _batched)
    )
    interfaces.AttentionInterface.register(NAME, forward)
    interfaces.AttentionInterface.register(f"paged|{NAME}", paged)
    interfaces.AttentionInterface.register(BATCHED, batched)
    interfaces.AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def sample_attention_prefill(
    model: PreTrainedModel, config: Rule | str = "default", *, policy: Policy = "auto",
    record: bool = False, keep_plans: Collection[int] = (),
) -> Generator[Recorder]:  # fmt: skip
    """Let the (text) layers of a model use SampleAttention inside a `with` block.

    Args:
        model: a causal language model; several blocks may be nested, the one opened last counts.
            A block changes the model for every thread, so those of two threads may not overlap.
        config: how keys are selected, for this model inside this block.
        policy: as for `sample_attention`; `sparse` measures answers where sparse does not pay.
        record: collect statistics per layer and head; costs time.
        keep_plans: also keep the plans of these layers; implies `record`.

    Yields:
        The recorder, whose `layers` fill up as the model runs.

    Raises:
        InvalidConfig: unknown preset or tuned configuration.
        UnsupportedAttention: the implementation of this model's attention cannot be chosen, or the
            model is inside a block of another thread.
        MissingExtra: transformers is not installed.
    """
    check_policy(policy)
    recorder = Recorder(record or bool(keep_plans), keep_plans)
    interfaces: Any = require("transformers", "transformers")
    if NAME not in interfaces.AttentionInterface.valid_keys(interfaces.AttentionInterface()):
        register()
    session = open_session(model, as_rule(config), policy, recorder)
    try:
        yield recorder
    finally:
        close_session(session)


def _mask(  # noqa: PLR0913
    batch_size: int, q_length: int, kv_length: int, q_offset: int | Tensor = 0,
    kv_offset: int = 0, *, mask_function: Callable[..., Any], config: object = None,
    attention_mask: Tensor | None = None, device: torch.device | str = "cpu", **_: object,
) -> Tensor:  # fmt: skip
    """The mask of the keys in use: bool `[B, W]` of padding, or int32 numbers of packed sequences.

    Key j of the layer has position `kv_offset + j`; keys from `q_offset + q_length` on are the
    unfilled part of a static cache. Called once per forward pass and kind of layer, so it waits for
    the device here and leaves what it read with the mask.

    Raises:
        UnsupportedAttention: the model does not call the attention that was chosen, or the mask
            ends before the tokens of the call.
    """
    refuse_model(config)
    if attention_mask is not None and recall_layout(attention_mask) is not None:
        return attention_mask  # with a static cache `generate` made it, and the model asks again
    parts, end = read_mask_function(mask_function), int(q_offset) + q_length
    if parts.refusal is not None:  # said where attention is called with it: not all masks are used
        mask = torch.ones(batch_size, 0, dtype=torch.bool, device=device)
        return remember_layout(mask, Layout(0, refusal=parts.refusal))
    if parts.packed is not None:
        mask = parts.packed.to(torch.int32)
        layout = layout_of_packed(mask, parts.window)
    elif attention_mask is not None:
        # Contiguous, or `generate` copies it (transformers 5.24), and the copy knows no layout.
        mask = _tokens_so_far(attention_mask, q_length, end)[:, kv_offset:].bool().contiguous()
        layout = layout_of_mask(mask, q_length, parts.window)
    else:
        mask = torch.ones(batch_size, end - kv_offset, dtype=torch.bool, device=device)
        layout = Layout(end - kv_offset, window=parts.window)
    if parts.chunk is not None and parts.chunk[0] < end:
        starts = [padding - kv_offset for padding in parts.chunk[1].tolist()]
        layout = in_chunks(layout, q_length, parts.chunk[0], starts)
    return remember_layout(mask, replace(layout, made_for=kv_length))


def _tokens_so_far(attention_mask: Tensor, q_len: int, end: int) -> Tensor:
    """The columns of a mask up to the last token of the call."""
    if attention_mask.shape[1] < end:
        raise UnsupportedAttention(
            f"attention_mask has {attention_mask.shape[1]} columns and ends before this call's "
            f"tokens, which are positions {end - q_len} to {end - 1}; pass one column for each "
            "token so far, those in the cache included (was the prompt already in the cache?)"
        )
    return attention_mask[:, :end]


def _attention(  # noqa: PLR0913, PLR0917
    choice: Choice, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None,
    is_causal: bool | None = None, s_aux: Tensor | None = None, **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:  # fmt: skip
    """What a model calls: q `[B, H, Sq, D]`, k and v `[B, Hkv, Skv, D]`; out `[B, Sq, H, D]`."""
    refuse(module, (query, key, value), dropout, is_causal, kwargs)
    if attention_mask is None and is_causal is None and not hasattr(module, "is_causal"):
        raise unsupported(
            module, "attention_mask", "is None, and the layer does not say that it is causal",
            "pass is_causal=True where it is; cross attention needs another attn_implementation",
        )  # fmt: skip
    layout = layout_of_call(module, attention_mask, query, key, kwargs, sliding_window)
    if layout.width < key.shape[2]:
        key, value = key[:, :, : layout.width], value[:, :, : layout.width]
    window = sliding_window or layout.window
    call = LayerCall(
        query, key, value, choice.config, scaling, window, softcap or None, s_aux, choice.policy
    )
    if layout.holes is None:
        return _run(module, call, layout.rows).transpose(1, 2).contiguous(), None
    if window is not None and window < layout.width:
        raise unsupported(
            module, "attention_mask", "has gaps, across which a sliding window is not defined here",
            "pad on one side only",
        )  # fmt: skip
    # Tokens gathered one after another, as fused attention does for padded batches.
    tokens, here = layout.holes, layout.holes[:, layout.width - query.shape[2] :]
    parts = (query, here), (key, tokens), (value, tokens)
    q, k, v = (x.transpose(1, 2)[at].transpose(0, 1)[None] for x, at in parts)
    out = value.new_zeros((*here.shape, query.shape[1], value.shape[-1]), dtype=query.dtype)
    rows = rows_of_holes(tokens, query.shape[2])
    out[here] = _run(module, replace(call, q=q, k=k, v=v), rows)[0].transpose(0, 1)
    return out, None


def _paged(  # noqa: PLR0913, PLR0917
    choice: Choice, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    softcap: float | None = None, is_causal: bool | None = None, s_aux: Tensor | None = None,
    sliding_window: int | None = None, block_table: Tensor | None = None, **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:  # fmt: skip
    """What continuous batching calls: q `[1, H, T, D]` of all requests, keys in a paged cache."""
    del attention_mask, sliding_window  # the cache knows the window of the layer
    refuse(module, (query, key, value), dropout, is_causal, kwargs)
    cache = kwargs.get("cache")
    if cache is None or block_table is not None:
        raise unsupported(
            module, "cache" if cache is None else "block_table",
            "is not what continuous batching passes to this implementation",
            f"use attn_implementation='{NAME}' outside generate_batch",
        )  # fmt: skip
    layer: Any = module.layer_idx
    indices = {name: kwargs[name] for name in ("read_index", "write_index")}
    k, v = cache.update(key_states=key, value_states=value, layer_idx=layer, **indices)
    window = _window_of_cache(module)
    cu_q, cu_k = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]
    if isinstance(cu_k, dict):
        cu_k = cu_k["full_attention" if window is None else "sliding_attention"]
    call = LayerCall(
        query, k.transpose(0, 1)[None], v.transpose(0, 1)[None], choice.config, scaling,
        window, softcap or None, s_aux, choice.policy,
    )  # fmt: skip
    rows = rows_of_call(module, cu_q, cu_k)
    return _run(module, call, rows).transpose(1, 2).contiguous(), None


def _batched(
    choice: Choice, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:  # fmt: skip
    """What continuous batching calls since transformers 5.19: packed sequences for `_attention`.

    Until 5.23 the keys of earlier tokens are still in the cache, which also changes `kwargs`.
    """
    del attention_mask  # none is made for this name
    if kwargs.get("read_index") is None:
        raise unsupported(
            module, "read_index", "is not what continuous batching passes to this implementation",
            f"use attn_implementation='{NAME}' outside generate_batch",
        )  # fmt: skip
    cache = kwargs.pop("cache", None)
    if cache is not None:
        key, value = cache.update(key, value, module.layer_idx, kwargs=kwargs)
    kwargs["sliding_window"] = _window_of_cache(module)
    return _attention(choice, module, query, key, value, None, **kwargs)


def _window_of_cache(module: nn.Module) -> int | None:
    """The window for which the paged cache keeps a layer's keys; some models tell masks alone."""
    config: Any = module.config
    kinds = getattr(config, "layer_types", None)
    sliding = kinds is None or kinds[module.layer_idx] == "sliding_attention"
    return getattr(config, "sliding_window", None) if sliding else None


def _run(module: nn.Module, call: LayerCall, rows: Rows | None) -> Tensor:
    session, layer = session_of(module), layer_of(module)
    source = call if session is None else session
    rule, policy = source.config, source.policy
    layers = _layers_of(module)
    if layer is not None and layers is not None:
        rule = rule_in_layer(rule, layer, layers)
    keep_plan = session is not None and session.recorder.active
    out, parts = compute(replace(call, config=rule, policy=policy, keep_plan=keep_plan), rows)
    if session is not None:
        for part in parts:
            session.recorder.add(-1 if layer is None else layer, part)
    return out


def _layers_of(module: nn.Module) -> int | None:
    """Layers of the model that a layer belongs to; None where it does not say."""
    layers: Any = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    return None if layers is None else int(layers)
