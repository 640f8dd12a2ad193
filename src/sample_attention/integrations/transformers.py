"""SampleAttention as an attention implementation of Hugging Face transformers.

`register()` makes `attn_implementation="sample_attention"` known; `sample_attention_prefill(model)`
uses it for a while, also for continuous batching. Long prompts run sparse, everything else exactly
as the model defines it, or it is refused with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .._extras import require
from ..errors import UnsupportedAttention
from ..plan import Rule, as_rule, rule_in_layer
from .arguments import layout_of_call, refuse, rows_of_call, unsupported
from .layers import LayerCall, compute
from .layout import Rows, layout_of_mask, layout_of_packed, remember_layout, rows_of_holes
from .masks import read_mask_function
from .recording import LayerStatistics, Recorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["NAME", "LayerStatistics", "Recorder", "register", "sample_attention_prefill"]

NAME = "sample_attention"
"""The attention implementation."""

_BATCHED = f"flash|{NAME}"
"""The one for continuous batching, which since transformers 5.19 takes no name but of its own and
those with "flash", for which it makes no mask of all pairs; until 5.18 `paged|` before NAME."""


@dataclass(frozen=True)
class _Session:
    """What a context manager asks of the modules of its model."""

    config: Rule
    recorder: Recorder


_sessions: WeakKeyDictionary[nn.Module, _Session] = WeakKeyDictionary()


def register(config: Rule | str = "default") -> None:
    """Make the implementation known to transformers; again with another `config` replaces that.

    Args:
        config: how keys are selected, for every model that has no context manager of its own.

    Raises:
        InvalidConfig: unknown preset or tuned configuration.
        MissingExtra: transformers is not installed.
    """
    settings = as_rule(config)
    interfaces: Any = require("transformers", "transformers")
    # What is read from masks depends on their values, which a compiled graph does not know.
    eagerly: Any = torch.compiler.disable
    forward, paged, batched = (
        eagerly(partial(function, settings)) for function in (_attention, _paged, _batched)
    )
    interfaces.AttentionInterface.register(NAME, forward)
    interfaces.AttentionInterface.register(f"paged|{NAME}", paged)
    interfaces.AttentionInterface.register(_BATCHED, batched)
    interfaces.AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def sample_attention_prefill(
    model: PreTrainedModel, config: Rule | str = "default", *,
    record: bool = False, keep_plans: Collection[int] = (),
) -> Generator[Recorder]:  # fmt: skip
    """Let the (text) layers of a model use SampleAttention inside a `with` block.

    Args:
        model: a causal language model; several blocks may be nested, the innermost counts.
        config: how keys are selected, for this model inside this block.
        record: collect statistics per layer and head; costs time.
        keep_plans: also keep the plans of these layers; implies `record`.

    Yields:
        The recorder, whose `layers` fill up as the model runs.

    Raises:
        InvalidConfig: unknown preset or tuned configuration.
        UnsupportedAttention: the implementation of this model's attention cannot be chosen.
        MissingExtra: transformers is not installed.
    """
    recorder = Recorder(record or bool(keep_plans), keep_plans)
    session = _Session(as_rule(config), recorder)
    interfaces: Any = require("transformers", "transformers")
    if NAME not in interfaces.AttentionInterface.valid_keys(interfaces.AttentionInterface()):
        register()
    previous_sessions = {m: _sessions[m] for m in model.modules() if m in _sessions}
    previous = [(c, c._attn_implementation) for c in _configs(model)]
    try:
        _switch(model)
        _sessions.update(dict.fromkeys(model.modules(), session))
        yield recorder
    finally:
        for config_object, implementation in previous:  # parents first: they also set their parts
            config_object._attn_implementation = implementation
        for module in model.modules():
            _sessions.pop(module, None)
        _sessions.update(previous_sessions)


def _configs(model: PreTrainedModel) -> list[Any]:
    """The configurations of a model and its parts, each once, those that contain others first."""
    found: dict[int, Any] = {}

    def visit(config: Any) -> None:  # noqa: ANN401
        if config is not None and id(config) not in found:
            found[id(config)] = config
            for key in config.sub_configs:
                visit(getattr(config, key, None))

    for module in model.modules():
        if hasattr(module, "set_attn_implementation"):
            visit(module.config)
    return list(found.values())


def _switch(model: PreTrainedModel) -> None:
    """Choose the implementation for the text decoder; other towers are not causal."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    previous = text._attn_implementation or ""
    keys = [key for key in config.sub_configs if getattr(config, key, None) is text]
    if text is config or keys:
        model.set_attn_implementation({keys[0]: NAME} if keys else NAME)
    if text._attn_implementation != NAME:
        raise UnsupportedAttention(
            f"the attention implementation of {type(model).__name__} cannot be chosen; accepted: "
            "models of transformers that use AttentionInterface"
        )
    if "paged|" in previous:
        # Set here: set_attn_implementation would look for a kernel of the name in the hub.
        text._attn_implementation = _batched_name()


def _batched_name() -> str:
    interface: Any = require("transformers", "transformers").AttentionInterface()
    return f"paged|{NAME}" if "paged|sdpa" in interface.valid_keys() else _BATCHED


def _mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int | Tensor = 0,
    kv_offset: int = 0, *, mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None, device: torch.device | str = "cpu", **_: object,
) -> Tensor | None:  # fmt: skip
    """The padding mask of the keys in use: bool `[B, W]`, or None where nothing limits them.

    Key j of the layer has position `kv_offset + j`; keys from `q_offset + q_length` on are the
    unfilled part of a static cache. Called once per forward pass and kind of layer, so it waits for
    the device here and leaves what it read with the mask.
    """
    parts = read_mask_function(mask_function)
    width = int(q_offset) + q_length - kv_offset
    limited = width < kv_length or parts.packed is not None
    limited = limited or (parts.window is not None and parts.window < width)
    if attention_mask is None:
        if not limited:
            return None
        mask = torch.ones(batch_size, width, dtype=torch.bool, device=device)
        if parts.packed is not None:
            return remember_layout(mask, layout_of_packed(parts.packed, parts.window))
    else:
        # With a static cache `generate` makes the mask, and the model again from what it made.
        start = kv_offset if attention_mask.shape[1] > width else 0
        mask = attention_mask[:, start : start + width].bool()
        mask = nn.functional.pad(mask, (0, width - mask.shape[1]))
    layout = layout_of_mask(mask, q_length, parts.window)
    if layout.rows is None and layout.holes is None and not limited:
        return None
    return remember_layout(mask, layout)


def _attention(  # noqa: PLR0913, PLR0917
    config: Rule, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None,
    is_causal: bool | None = None, s_aux: Tensor | None = None, **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:  # fmt: skip
    """What a model calls: q `[B, H, Sq, D]`, k and v `[B, Hkv, Skv, D]`; out `[B, Sq, H, D]`."""
    refuse(module, (query, key, value), dropout, is_causal, kwargs)
    layout = layout_of_call(module, attention_mask, query, key, kwargs)
    if layout.width < key.shape[2]:
        key, value = key[:, :, : layout.width], value[:, :, : layout.width]
    window = sliding_window or layout.window
    call = LayerCall(query, key, value, config, scaling, window, softcap or None, s_aux)
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
    out = query.new_zeros(query.transpose(1, 2).shape)
    rows = rows_of_holes(tokens, query.shape[2])
    out[here] = _run(module, replace(call, q=q, k=k, v=v), rows)[0].transpose(0, 1)
    return out, None


def _paged(  # noqa: PLR0913, PLR0917
    config: Rule, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
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
        query, k.transpose(0, 1)[None], v.transpose(0, 1)[None], config, scaling,
        window, softcap or None, s_aux,
    )  # fmt: skip
    rows = rows_of_call(module, cu_q, cu_k)
    return _run(module, call, rows).transpose(1, 2).contiguous(), None


def _batched(
    config: Rule, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
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
    return _attention(config, module, query, key, value, None, **kwargs)


def _window_of_cache(module: nn.Module) -> int | None:
    """The window for which the paged cache keeps a layer's keys; some models tell masks alone."""
    config: Any = module.config
    kinds = getattr(config, "layer_types", None)
    sliding = kinds is None or kinds[module.layer_idx] == "sliding_attention"
    return getattr(config, "sliding_window", None) if sliding else None


def _layers_of(module: nn.Module) -> int:
    config: Any = module.config
    return int(config.num_hidden_layers)


def _run(module: nn.Module, call: LayerCall, rows: Rows | None) -> Tensor:
    session, layer = _sessions.get(module), int(getattr(module, "layer_idx", 0))
    rule = call.config if session is None else session.config
    rule = rule_in_layer(rule, layer, _layers_of(module))
    if session is None:
        return compute(replace(call, config=rule), rows)[0]
    out, parts = compute(replace(call, config=rule, keep_plan=session.recorder.active), rows)
    for part in parts:
        session.recorder.add(layer, part)
    return out
