"""Attention alone: the whole operation, selection included, against dense attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..analysis import measure_retained_mass
from ..api import attend, sample_attention, select
from ..config import SampleAttentionConfig
from ..errors import SampleAttentionError
from ..policy import decide
from ..problem import Problem
from ..testing import assert_matches_oracle
from .cases import SHORT_LENGTHS, TEXT, Case, captured
from .timing import Times, time_in_turns

Row = dict[str, object]

GATE_LENGTH = 2048
"""The oracle holds every pair in fp64, so the gate runs on a prefix of this length."""


class RedGate(SampleAttentionError):
    """The backend is wrong on the inputs to be measured: no speed is reported."""


def measure_case(case: Case, seconds: float) -> Iterator[Row]:
    """One row per layer and setting of a case; correctness first.

    Raises:
        RedGate: the backend misses the oracle's budget on these inputs.
    """
    for layer, (q, k, v) in captured(case).items():
        for preset, coverage in case.settings:
            config = SampleAttentionConfig.preset(preset, coverage=coverage)
            check_gate(q, k, v, config)
            name = f"captured:{case.model}/{TEXT}/{layer}"
            yield {"input": name, **measure_attention((q, k, v), preset, config, seconds)}


def measure_short(case: Case, seconds: float) -> Iterator[Row]:
    """One row per short length: prefixes of one layer's inputs, policy included."""
    layer = case.layers[len(case.layers) // 2]
    q, k, v = captured(case)[layer]
    for length in SHORT_LENGTHS:
        short = [x[:, :, :length].contiguous() for x in (q, k, v)]
        name = f"captured:{case.model}/{TEXT}/{layer}"
        config = SampleAttentionConfig.preset("default")
        yield {"input": name, **measure_attention(short, "default", config, seconds)}


def measure_attention(
    qkv: Sequence[Tensor], preset: str, config: SampleAttentionConfig, seconds: float
) -> Row:
    """Times of select, attend and the whole call beside dense, density and retained mass."""
    q, k, v = qkv
    plan = select(q, k, config)
    sparse = decide(Problem.of(q, k, v), config).sparse
    mass = measure_retained_mass(q, k, plan, num_rows=64).mass.flatten()
    runs: dict[str, Callable[[], object]] = {
        "dense": lambda: scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        ),
        "total": lambda: sample_attention(q, k, v, config),
    }
    if sparse:
        runs["select"] = lambda: select(q, k, config)
        runs["attend"] = lambda: attend(q, k, v, plan).out
    times = time_in_turns(runs, seconds=seconds, repeats=3 if q.shape[2] < 32768 else 2)
    return {
        "seq_len": q.shape[2], "heads": q.shape[1], "kv_heads": k.shape[1],
        "head_dim": q.shape[3], "dtype": str(q.dtype).removeprefix("torch."),
        "preset": preset, "coverage": config.coverage, "route": "sparse" if sparse else "dense",
        "density": float(plan.density().mean()) if sparse else 1.0,
        "retained_mass_mean": float(mass.mean()) if sparse else 1.0,
        "retained_mass_p5": float(mass.quantile(0.05)) if sparse else 1.0,
        "s_select": _median(times.get("select")), "s_attend": _median(times.get("attend")),
        "s_total": times["total"].p50, "s_total_p20": times["total"].p20,
        "s_total_p80": times["total"].p80,
        "s_dense": times["dense"].p50, "s_dense_p20": times["dense"].p20,
        "s_dense_p80": times["dense"].p80, "repeats": times["total"].repeats,
        "speedup": times["dense"].p50 / times["total"].p50,
    }  # fmt: skip


def check_gate(q: Tensor, k: Tensor, v: Tensor, config: SampleAttentionConfig) -> None:
    """Compare the backend with the fp64 oracle on a prefix of the inputs.

    Raises:
        RedGate: the error is beyond the budget.
    """
    q, k, v = (x[:, :, :GATE_LENGTH].contiguous() for x in (q, k, v))
    plan = select(q, k, config)
    out, lse = attend(q, k, v, plan)
    try:
        assert_matches_oracle(out, lse, q, k, v, plan)
    except AssertionError as error:
        raise RedGate(f"wrong on the inputs to be measured: {error}") from error


def _median(times: Times | None) -> float | None:
    return None if times is None else times.p50


def dense_floor(row: Row, gflops: float) -> float:
    """Seconds that the kept pairs' arithmetic takes at `gflops`: 4 D per pair and head."""
    heads, dim, length = (int(str(row[x])) for x in ("heads", "head_dim", "seq_len"))
    pairs = float(str(row["density"])) * length * (length + 1) / 2
    return 4 * dim * heads * pairs / (gflops * 1e9)


def machine_gflops(size: int = 2048) -> float:
    """What this process reaches on an fp32 matrix product: the rate that floors are stated at."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    times = time_in_turns({"matmul": lambda: a @ a}, seconds=1.0, repeats=5)
    return 2 * size**3 / times["matmul"].p20 / 1e9
