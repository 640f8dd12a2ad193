"""The dense attention that is measured beside ours: every provider at hand, by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..errors import InvalidInput, UnsupportedProblem
from ..problem import Problem


class DenseProvider(Protocol):
    """One implementation of dense causal attention."""

    name: str

    def refusal(self, problem: Problem) -> str | None:
        """Why it cannot compute the problem; None when it can."""
        ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """Out `[B, H, S, D]` like q; k and v `[B, Hkv, S, D]`."""
        ...


class Sdpa:
    """What PyTorch brings."""

    name = "sdpa"

    def refusal(self, problem: Problem) -> str | None:
        """See `DenseProvider.refusal`."""
        return _not_square(problem)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See `DenseProvider`."""
        grouped = problem.group_size > 1
        return scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )


class FlashAttention3:
    """The wheel `fa3-fwd`; it wants `[B, S, H, D]`."""

    name = "fa3"

    def refusal(self, problem: Problem) -> str | None:
        """See `DenseProvider.refusal`."""
        if problem.device.type != "cuda":
            return f"device {problem.device}; accepted: an NVIDIA GPU"
        if find_spec("fa3_fwd_interface") is None:
            return "fa3-fwd is not installed"
        return _not_square(problem)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, problem: Problem, scale: float) -> Tensor:
        """See `DenseProvider`."""
        del problem
        run = import_module("fa3_fwd_interface").flash_attn_func
        out = run(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale=scale, causal=True)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


PROVIDERS: tuple[DenseProvider, ...] = (Sdpa(), FlashAttention3())


def dense_providers(names: Sequence[str], problem: Problem) -> list[DenseProvider]:
    """The providers of these names, or without names all that accept the problem.

    Raises:
        InvalidInput: there is no provider of a name.
        UnsupportedProblem: one that was named refuses, or all do.
    """
    known = {provider.name: provider for provider in PROVIDERS}
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


def _not_square(problem: Problem) -> str | None:
    s = problem.sequences
    if s.uniform and s.max_q_len == s.max_kv_len:
        return None
    return "measured on whole prompts of one length only"
