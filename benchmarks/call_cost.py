"""What a routed call costs in Python, stage by stage, around a dense kernel that does nothing.

    python benchmarks/call_cost.py [CALLS]

Needs no GPU and times none: what is left is the host's share of a call, in microseconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import causal_mask_function

from sample_attention import SampleAttentionConfig, measured_attention, sample_attention
from sample_attention.dense import attention, flash_attention
from sample_attention.integrations.transformers import Choice, _attention, _mask
from sample_attention.problem import Problem
from sample_attention.routing.route import route
from sample_attention.selection.rule import fixed_rule

ROUNDS = 200
LAYERS = 28
Inputs = tuple[Tensor, Tensor, Tensor]


class Nothing(ModuleType):
    """The interface of FlashAttention 3, with results that were there before."""

    def __init__(self, q: Tensor) -> None:
        """Take the results for one q `[B, H, S, D]`."""
        super().__init__("fa3_fwd_interface")
        self.results = torch.empty_like(q.transpose(1, 2)), q.new_empty(q.shape[:3])

    def flash_attn_func(self, *_: object, **__: object) -> Inputs:
        """What is called for a batch."""
        return self.results

    flash_attn_varlen_func = flash_attn_func


def stages(qkv: Inputs) -> dict[str, Callable[[], object]]:
    """Whole calls first, then the parts of one; each runs once per call."""
    q, k, v = qkv
    config, problem = SampleAttentionConfig(), Problem.of(q, k, v)
    provider = flash_attention.FlashAttention3()
    flash_attention.import_first = lambda *_: Nothing(q)
    module = flash_attention.import_first()
    flash_attention.import_first = lambda *_: module
    attention.choose_provider = lambda _: provider
    layers = [nn.Module() for _ in range(LAYERS)]
    for index, layer in enumerate(layers):
        layer.layer_idx, layer.is_causal = index, True
        layer.config = SimpleNamespace(num_hidden_layers=LAYERS)
    length = q.shape[2]
    mask = _mask(len(q), length, length, mask_function=causal_mask_function)
    given: dict[str, Any] = {
        "scaling": 0.1, "use_cache": True, "position_ids": torch.arange(length)[None]
    }  # fmt: skip
    choice, turn = Choice(config), iter(range(sys.maxsize))
    return {
        "sample_attention": lambda: sample_attention(q, k, v, config),
        "measured_attention": lambda: measured_attention(q, k, v, config),
        "a layer of a model": lambda: _attention(
            choice, layers[next(turn) % LAYERS], q, k, v, mask, **given
        ),
        "  check and describe": lambda: Problem.of(q, k, v),
        "  resolve the rule": lambda: fixed_rule(config, 100, problem),
        "  route": lambda: route(problem, config),
        "  dense, to the kernel": lambda: attention.dense(q, k, v, problem, 0.1),
        "    its provider": lambda: provider(q, k, v, 0.1),
        "    four transposed views": lambda: [x.transpose(1, 2) for x in (q, k, v, q)],
    }


def microseconds(run: Callable[[], object], calls: int) -> float:
    """Of one call: the mean of a round, the best of all rounds."""
    rounds = list[float]()
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls // ROUNDS):
            run()
        rounds.append((time.perf_counter() - start) / (calls // ROUNDS))
    return 1e6 * min(rounds)


def main(calls: int) -> None:
    """Print a line per stage."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        q, k, v = (torch.zeros(1, 1024, h, 128, dtype=torch.bfloat16) for h in (32, 8, 8))
        for name, run in stages((q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))).items():
            sys.stdout.write(f"{name:24s} {microseconds(run, calls):7.2f}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
