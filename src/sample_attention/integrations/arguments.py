"""What a layer asks for: refused where it cannot be computed right, read where it can."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidInput, UnsupportedAttention
from .layout import (
    Layout,
    Rows,
    layout_of_mask,
    layout_of_packed,
    recall_layout,
    remembered_rows,
    rows_of_positions,
    rows_of_totals,
)

_KNOWN = frozenset(
    {
        "cache", "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "labels", "logits_indices",
        "logits_processor_args", "logits_to_keep", "max_length_k", "max_length_q", "max_seqlen_k",
        "max_seqlen_q", "mm_token_type_ids", "num_items_in_batch", "output_attentions",
        "output_hidden_states", "output_router_logits", "past_key_values", "position_embeddings",
        "position_ids", "read_index", "return_dict", "token_type_ids", "use_cache", "write_index",
    }
)  # fmt: skip
"""Keywords that are read, or that do not change what attention is; any other one is refused."""


def layer_of(module: nn.Module) -> int | None:
    """Index of a layer in its model; None where it has none, as one that several places share."""
    layer: Any = getattr(module, "layer_idx", None)
    return None if layer is None else int(layer)


def unsupported(
    module: nn.Module, argument: str, problem: str, remedy: str
) -> UnsupportedAttention:
    """The refusal of a call, naming the layer, the argument, what is wrong and what to do."""
    kind = getattr(getattr(module, "config", None), "model_type", "unknown")
    layer = layer_of(module)
    where = f"{type(module).__name__} (model type {kind}, layer {layer})"
    return UnsupportedAttention(f"{where}: {argument} {problem}; {remedy}")


def refuse(
    module: nn.Module, tensors: tuple[Tensor, Tensor, Tensor], dropout: float,
    is_causal: bool | None, others: Mapping[str, Any],
) -> None:  # fmt: skip
    """Check all of a call but its mask.

    Raises:
        UnsupportedAttention: it asks for what is not computed here.
    """
    if dropout:
        raise unsupported(module, "dropout", f"is {dropout}; accepted: 0", "call model.eval()")
    q, k, v = tensors
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise unsupported(
            module, "query, key or value", "needs gradients; there is no backward pass",
            "run under torch.no_grad(), or train with another attn_implementation",
        )  # fmt: skip
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise unsupported(
            module, "is_causal", "is False; accepted: causal self-attention", "use another "
            "attn_implementation for this part of the model, or for all of it where this is its "
            "text decoder; with parts, {'text_config': 'sample_attention'} names the decoder alone",
        )  # fmt: skip
    if others.get("output_attentions"):
        raise unsupported(
            module, "output_attentions", "is True; the weights are never formed",
            "use attn_implementation='eager' to see them",
        )  # fmt: skip
    strange = [name for name, x in others.items() if name not in _KNOWN and x is not None]
    if strange:
        raise unsupported(
            module, ", ".join(strange), "may change what attention is and is not known here",
            "leave it out or use another attn_implementation",
        )  # fmt: skip


def layout_of_call(
    module: nn.Module, mask: Tensor | None, q: Tensor, k: Tensor, others: Mapping[str, Any],
    window: int | None = None,
) -> Layout:  # fmt: skip
    """Where the sequences of a call lie: from its totals, its mask or its positions.

    `window`: the sliding window that the call names, or None.

    Raises:
        UnsupportedAttention: they say nothing that can be computed.
    """
    layout = Layout(k.shape[2]) if mask is None else _read_mask(module, mask, q, k, window)
    cu_q, cu_k = others.get("cu_seq_lens_q"), others.get("cu_seq_lens_k")
    positions = others.get("position_ids")
    padded = layout.holes is not None or (layout.rows is not None and not layout.packed)
    if cu_q is not None and cu_k is not None:
        if padded or q.shape[0] > 1:
            raise unsupported(
                module, "cu_seq_lens_q", "comes with a padding mask or a batch of several rows",
                "pack all sequences into one batch row without a mask",
            )  # fmt: skip
        return Layout(layout.width, rows_of_call(module, cu_q, cu_k), None, layout.window)
    if padded or layout.packed or q.shape[2] == 1 or not isinstance(positions, Tensor):
        return layout
    if positions.dim() != 2 or positions.shape[1] != q.shape[2]:
        return layout
    try:
        read = partial(rows_of_positions, positions, q.shape[0])
        rows = remembered_rows(read, positions, layer=layer_of(module))
    except InvalidInput as error:
        raise unsupported(
            module, "position_ids", f"do not number one sequence or packed ones: {error}",
            "pass an attention_mask for padding, or positions that count up",
        ) from error  # fmt: skip
    if rows is None:
        return layout
    if q.shape[2] != layout.width:
        raise unsupported(
            module, "position_ids", "start again after a cached prefix, so that the keys of each "
            "sequence are unknown", "pass packed sequences in one call, without a cached prefix",
        )  # fmt: skip
    return Layout(layout.width, rows, None, layout.window)


def rows_of_call(module: nn.Module, cu_q: Tensor, cu_k: Tensor) -> Rows:
    """The packed sequences that running totals name.

    Raises:
        UnsupportedAttention: they do not fit each other.
    """
    try:
        read = partial(rows_of_totals, cu_q, cu_k)
        rows = remembered_rows(read, cu_k, cu_q, layer=layer_of(module))
    except InvalidInput as error:
        raise unsupported(
            module, "cu_seq_lens_q and cu_seq_lens_k", f"do not fit: {error}",
            "pass running totals from 0, one more than there are sequences",
        ) from error  # fmt: skip
    return rows or ()


def _read_mask(module: nn.Module, mask: Tensor, q: Tensor, k: Tensor, window: int | None) -> Layout:
    if not isinstance(mask, Tensor) or mask.dim() != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
        shape = tuple(getattr(mask, "shape", ()))
        raise unsupported(
            module, "attention_mask", f"is a {type(mask).__name__} of shape {shape}; accepted: a "
            "padding mask [B, Skv]", "leave out masks of pairs of tokens",
        )  # fmt: skip
    layout = recall_layout(mask)
    if layout is None:
        layout = _layout_of_copy(module, mask, q, window)
    if layout.refusal is not None:
        raise unsupported(
            module, "attention_mask", layout.refusal, "use another attn_implementation"
        )
    if layout.made_for not in (None, k.shape[2]):
        raise unsupported(
            module, "attention_mask", f"was made for {layout.made_for} keys and the layer has "
            f"{k.shape[2]}: it adds or leaves out keys on its own",
            "use another attn_implementation",
        )  # fmt: skip
    if not q.shape[2] <= layout.width <= k.shape[2] or len(mask) != len(q):
        raise unsupported(
            module, "attention_mask", f"has shape {tuple(mask.shape)} for a batch of {len(q)} with "
            f"{q.shape[2]} queries and {k.shape[2]} keys", "pass one column per key",
        )  # fmt: skip
    return layout


def _layout_of_copy(module: nn.Module, mask: Tensor, q: Tensor, window: int | None) -> Layout:
    """What a copy of a mask still says, as on another device of a spread model.

    `window`: of the call, or None where it names none.

    Raises:
        UnsupportedAttention: what the mask alone knew is lost.
    """
    if not mask.shape[1]:
        raise unsupported(
            module, "attention_mask", "is a copy of a mask of pairs of tokens, which is never "
            "formed here", "use another attn_implementation",
        )  # fmt: skip
    config, width = getattr(module, "config", None), mask.shape[1]
    known = window is not None or hasattr(module, "sliding_window")
    window = getattr(module, "sliding_window", window)
    limit = None if known else getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    if (limit is not None and limit < width) or (chunk is not None and chunk <= width):
        raise unsupported(
            module, "attention_mask", "is a copy of the mask that was made, so that the window of "
            "the layer is unknown", "keep the model on one device",
        )  # fmt: skip
    if mask.dtype == torch.int32:
        return layout_of_packed(mask, window)
    return layout_of_mask(mask.bool(), q.shape[2], window)
