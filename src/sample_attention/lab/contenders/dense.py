"""Dense attention to compare with: every provider at hand, alone and in the place of a model's."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._extras import require
from ...dense.base import DenseProvider, Facts
from ...dense.registry import PROVIDERS
from ...errors import InvalidInput, UnsupportedAttention, UnsupportedProblem
from ...problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DenseContender:
    """One provider, on whole prompts of one length.

    Attributes:
        provider: what computes.
    """

    provider: DenseProvider

    @property
    def name(self) -> str:
        """Its name in records."""
        return self.provider.name

    def refusal(self, problem: Problem) -> str | None:
        """Why it cannot compute the problem; None when it can."""
        facts = Facts.of(problem)
        if facts.layout != "square":
            return "measured on whole prompts of one length only"
        return self.provider.refusal(facts)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """Out `[B, H, S, D]` like q; k and v `[B, Hkv, S, D]`."""
        del problem
        return self.provider(q, k, v, scale)[0]


PROVIDERS_MEASURED = tuple(DenseContender(p) for p in PROVIDERS if "merged" not in p.name)


def dense_providers(names: Sequence[str], problem: Problem) -> list[DenseContender]:
    """The providers of these names, or without names all that accept the problem.

    Raises:
        InvalidInput: there is no provider of a name.
        UnsupportedProblem: one that was named refuses, or all do.
    """
    known = {provider.name: provider for provider in PROVIDERS_MEASURED}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInput(
            f"there is no dense provider '{unknown[0]}'; accepted: {', '.join(known)}"
        )
    verdicts = {name: known[name].refusal(problem) for name in names or known}
    reasons = {name: reason for name, reason in verdicts.items() if reason is not None}
    if reasons and (names or len(reasons) == len(known)):
        raise UnsupportedProblem(str(problem), reasons)
    return [known[name] for name in verdicts if name not in reasons]


def attention_problem(model: PreTrainedModel, token_ids: Tensor) -> Problem:
    """The attention of one layer, described by tensors of one row that take no memory."""
    text: Any = model.config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    row = torch.zeros(dim, dtype=model.dtype, device=token_ids.device)
    length = token_ids.shape[1]
    k = row.expand(1, kv_heads, length, -1)
    return Problem.of(row.expand(1, heads, length, -1), k, k)


@contextmanager
def dense_attention(model: PreTrainedModel, provider: DenseContender) -> Generator[None]:
    """Let a model attend by a dense provider inside a `with` block: whole prompts only.

    Raises:
        UnsupportedAttention: inside, for a call that is more than causal attention.
    """
    interfaces: Any = require("transformers", "transformers")
    config: Any = model.config
    before = str(config._attn_implementation)
    name = f"dense_{provider.name}"
    # Registered without a mask function, it is given no mask: a whole prompt needs none.
    interfaces.AttentionInterface.register(name, partial(_attend, provider))
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    provider: DenseContender, module: nn.Module, q: Tensor, k: Tensor, v: Tensor,
    mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:  # fmt: skip
    limits = [name for name in ("sliding_window", "softcap", "s_aux") if others.get(name)]
    if mask is not None or dropout or limits or q.shape[2] != k.shape[2]:
        raise UnsupportedAttention(
            f"{type(module).__name__}: dense attention by {provider.name} is that of a whole "
            f"causal prompt; this call has {', '.join(limits) or 'a mask, dropout or a cache'}"
        )
    problem = Problem.of(q, k, v)
    out = provider(q, k, v, problem, problem.scale(scaling))
    return out.transpose(1, 2).contiguous(), None
