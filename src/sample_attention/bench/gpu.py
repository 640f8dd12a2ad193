"""Attending to a plan on an NVIDIA GPU against dense attention; random lists of a given density.

Selection does not run on the device yet, so only `attend` is timed, and the lists are random: the
kernel's time depends on their lengths and not on what stands in them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..api import attend
from ..plan import StripePlan
from ..problem import Problem
from .attention import Row

WINDOW = 256
SEGMENT = 128


def measure_gpu(lengths: tuple[int, ...], kept: float, repeats: int = 7) -> Iterator[Row]:
    """One row per length: 32 query and 8 key/value heads of 128, bf16, batch 1, causal.

    Args:
        lengths: multiples of 128.
        kept: share of the keys left of the window that every list holds.
        repeats: timed runs, after two that do not count.
    """
    for length in lengths:
        q, k, v = (_random(heads, length) for heads in (32, 8, 8))
        plan = random_plan(q, k, kept)
        density = float(_pairs(plan, length)) / (q.shape[1] * length * (length + 1) / 2)
        flops = 4 * q.shape[3] * density * q.shape[1] * length * (length + 1) / 2
        times = _time(lambda: attend(q, k, v, plan, backend="triton"), repeats)  # noqa: B023
        dense = {name: _time(run, repeats)[1] for name, run in _dense(q, k, v).items()}
        yield {
            "input": "random", "seq_len": length, "heads": 32, "kv_heads": 8, "head_dim": 128,
            "batch": 1, "dtype": "bfloat16", "backend": "triton", "preset": None, "coverage": None,
            "segment": SEGMENT, "density": density, "ms_select": None, "ms_attend": times[1],
            "ms_attend_p20": times[0], "ms_attend_p80": times[2], "ms_dense": dense,
            "attend_tflops": flops / times[1] / 1e9,
            "attend_speedup_vs_fa3": dense["fa3"] / times[1] if "fa3" in dense else None,
        }  # fmt: skip


def random_plan(q: Tensor, k: Tensor, kept: float, seed: int = 0) -> StripePlan:
    """A plan whose lists hold random keys left of the window, each with probability `kept`."""
    problem, length = Problem.of(q, k, k), q.shape[2]
    generator = torch.Generator(device=q.device).manual_seed(seed)
    edges = (torch.arange(0, length, SEGMENT, device=q.device) - WINDOW + 1).clamp(min=0)
    keys = torch.arange(length, device=q.device)
    counts = torch.zeros(1, q.shape[1], len(edges), dtype=torch.int32, device=q.device)
    lists: list[Tensor] = []
    for h in range(q.shape[1]):
        for first in range(0, len(edges), 128):
            some = edges[first : first + 128, None]
            draw = torch.rand(len(some), length, device=q.device, generator=generator)
            keep = (draw < kept) & (keys < some)
            counts[0, h, first : first + 128] = keep.sum(1)
            lists.append(keep.nonzero()[:, 1].int())
    ends = counts.flatten().long().cumsum(0)
    return StripePlan(
        indices=torch.cat(lists),
        offsets=(ends - counts.flatten()).view(counts.shape),
        counts=counts,
        dense=torch.zeros_like(counts, dtype=torch.bool),
        sequences=problem.sequences,
        segment=SEGMENT,
        window=torch.tensor([WINDOW], dtype=torch.int32, device=q.device),
        window_alignment=SEGMENT,
    )


def _pairs(plan: StripePlan, length: int) -> Tensor:
    rows = torch.arange(length, device=plan.counts.device)
    edges = (rows // SEGMENT * SEGMENT - WINDOW + 1).clamp(min=0)
    band = (rows + 1 - edges).sum() * plan.num_heads
    return plan.counts.long().sum() * SEGMENT + band


def _dense(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    """The dense providers at hand; FlashAttention-3 wants `[B, S, H, D]`."""
    runs: dict[str, Callable[[], object]] = {
        "sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    }
    if find_spec("fa3_fwd_interface") is not None:
        run = import_module("fa3_fwd_interface").flash_attn_func
        qkv = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        runs["fa3"] = lambda: run(*qkv, causal=True)
    return runs


def _time(run: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Milliseconds: 20th percentile, median, 80th percentile."""
    run()
    run()
    taken: list[float] = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(stop))
    tenths = statistics.quantiles(taken, n=10, method="inclusive")
    return tenths[1], statistics.median(taken), tenths[7]


def _random(heads: int, length: int) -> Tensor:
    return torch.randn(1, heads, length, 128, device="cuda", dtype=torch.bfloat16)
