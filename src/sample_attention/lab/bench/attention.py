"""Attention alone: selecting, attending and the whole operation against dense attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...api import attend, sample_attention, select
from ...config import SampleAttentionConfig
from ...plan import StripePlan
from ...problem import Problem
from ...routing.engines import choose_attention
from ...routing.route import route
from ..analysis import measure_retained_mass
from ..contenders import DenseContender, dense_providers
from ..inputs import Inputs, random_plan
from ..records import Row
from .gate import check_attend, check_dense
from .timing import Times, clock_of, time_in_turns

MASS_ROWS = 64
"""Rows per head on which the retained mass is measured."""

PARTS = ("select", "attend", "total")


@dataclass(frozen=True)
class Settings:
    """How rows are measured.

    Attributes:
        backend: `auto` or a backend's name.
        dense: names of dense providers; empty: all that accept.
        seconds: turns are taken for at least this long per row.
        routed: time the public call, which runs dense where the policy says so; else sparse always.
        seed: of random rows and lists.
    """

    backend: str = "auto"
    dense: tuple[str, ...] = ()
    seconds: float = 2.0
    routed: bool = False
    seed: int = 0


def measure_selected(
    inputs: Inputs, preset: str, config: SampleAttentionConfig, settings: Settings
) -> Row:
    """One row: select from the inputs, attend, and both in one go; correctness first.

    Raises:
        RedGate: a result is beyond the error budget on these inputs.
        UnsupportedProblem: the backend or a dense provider refuses.
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    backend = settings.backend
    plan = select(q, k, config, backend=backend)
    answer = route(Problem.of(q, k, v), config)
    mass = measure_retained_mass(q, k, plan, num_rows=MASS_ROWS, seed=settings.seed).mass.flatten()
    dense = settings.routed and not answer.sparse

    def total() -> Tensor:
        if settings.routed:
            return sample_attention(q, k, v, config, backend=backend)
        return attend(q, k, v, select(q, k, config, backend=backend), backend=backend).out

    runs: dict[str, Callable[[], object]] = {"total": total}
    if not dense:
        runs["select"] = lambda: select(q, k, config, backend=backend)
    return {
        **_measured(inputs, plan, runs, settings, dense=dense),
        "backend": choose_attention(backend, Problem.of(q, k, v), plan.form),
        "preset": preset, "coverage": config.coverage, **_fields(config), "config": asdict(config),
        "route": "sparse" if answer.sparse else "dense", "route_reason": answer.reason,
        "routed": settings.routed,
        "retained_mass_mean": 1.0 if dense else float(mass.mean()),
        "retained_mass_p5": 1.0 if dense else float(mass.quantile(0.05)),
        "extra_bytes": extra_bytes(total, q.device),
    }  # fmt: skip


def measure_random(
    inputs: Inputs, density: float, config: SampleAttentionConfig, settings: Settings
) -> Row:
    """One row: attend to random lists of a density, which nothing selected; correctness first.

    Raises:
        RedGate: a result is beyond the error budget on these inputs.
        InvalidInput: the density is out of reach.
        UnsupportedProblem: the backend or a dense provider refuses.
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    plan = random_plan(inputs, density, config, settings.seed)
    answer = route(Problem.of(q, k, v), config)
    return {
        **_measured(inputs, plan, {}, settings, dense=False),
        "backend": choose_attention(settings.backend, Problem.of(q, k, v), plan.form),
        "preset": None, "coverage": None, **_fields(config), "row_stride": None, "config": None,
        "route": "sparse" if answer.sparse else "dense", "route_reason": answer.reason,
        "routed": False, "target_density": density, "retained_mass_mean": None,
        "retained_mass_p5": None,
        "extra_bytes": extra_bytes(
            lambda: attend(q, k, v, plan, backend=settings.backend).out, q.device
        ),
    }  # fmt: skip


def _measured(
    inputs: Inputs, plan: StripePlan, runs: dict[str, Callable[[], object]], settings: Settings, *,
    dense: bool,
) -> Row:  # fmt: skip
    """What all rows share: facts, errors and times of attending, of `runs` and of the providers."""
    q, k, v = inputs.q, inputs.k, inputs.v
    out, lse = attend(q, k, v, plan, backend=settings.backend)
    oracle = check_attend(out, lse, (q, k, v), plan, settings.seed)
    del out, lse
    if not dense:
        runs["attend"] = lambda: attend(q, k, v, plan, backend=settings.backend)
    for name, run in _dense_runs(inputs, settings).items():
        check_dense(name, run(), (q, k, v), settings.seed)
        runs[name] = run
    times = time_in_turns(
        runs, seconds=settings.seconds, repeats=3 if q.shape[2] < 32768 else 2,
        clock=clock_of(q.device),
    )  # fmt: skip
    density = 1.0 if dense else float(plan.density().mean())
    return {
        "input": inputs.name, "seq_len": q.shape[2], "heads": q.shape[1], "kv_heads": k.shape[1],
        "head_dim": q.shape[3], "batch": q.shape[0], "dtype": str(q.dtype).removeprefix("torch."),
        "density": density, "error": oracle.error, "error_budget": oracle.budget,
        "ppl_ratio": None, "repeats": max(x.repeats for x in times.values()),
        **_times(times, causal_flops(inputs) * density),
    }  # fmt: skip


def _dense_runs(inputs: Inputs, settings: Settings) -> dict[str, Callable[[], Tensor]]:
    q, k, v = inputs.q, inputs.k, inputs.v
    problem = Problem.of(q, k, v)

    def run_of(provider: DenseContender) -> Callable[[], Tensor]:
        return lambda: provider(q, k, v, problem, problem.scale(None))

    return {p.name: run_of(p) for p in dense_providers(settings.dense, problem)}


def _times(times: Mapping[str, Times], flops: float) -> Row:
    """Milliseconds, and what follows from their medians."""
    missing = dict.fromkeys(("p50", "p20", "p80"))
    row: Row = {}
    for part in PARTS:
        found = {**missing, **(_milliseconds(times[part]) if part in times else {})}
        row |= {f"ms_{part}": found["p50"], f"ms_{part}_p20": found["p20"],
                f"ms_{part}_p80": found["p80"]}  # fmt: skip
    dense = {name: _milliseconds(x) for name, x in times.items() if name not in PARTS}
    for suffix, point in (("", "p50"), ("_p20", "p20"), ("_p80", "p80")):
        row[f"ms_dense{suffix}"] = {name: x[point] for name, x in dense.items()}
    best, fa3 = min(x["p50"] for x in dense.values()), dense.get("fa3", {}).get("p50")
    total, attended = (times[x].p50 * 1000 if x in times else None for x in ("total", "attend"))
    return row | {
        "speedup": total and best / total,
        "speedup_vs_fa3": total and fa3 and fa3 / total,
        "attend_speedup": attended and best / attended,
        "attend_speedup_vs_fa3": attended and fa3 and fa3 / attended,
        "attend_tflops": attended and flops / attended / 1e9,
    }


def _milliseconds(times: Times) -> dict[str, float]:
    return {"p20": times.p20 * 1000, "p50": times.p50 * 1000, "p80": times.p80 * 1000}


def _fields(config: SampleAttentionConfig) -> Row:
    return {"segment": config.segment, "row_stride": config.row_stride, "window": config.window}


def causal_flops(inputs: Inputs) -> float:
    """Floating-point operations of dense causal attention: 4 D per pair and head."""
    batch, num_heads, length, head_dim = inputs.q.shape
    return 4 * head_dim * batch * num_heads * length * (length + 1) / 2


def extra_bytes(run: Callable[[], Tensor], device: torch.device) -> int | None:
    """Most device memory that a call holds beside its inputs and its result; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    out = run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before - out.nbytes


def with_floor(row: Row, gflops: float) -> Row:
    """The row with `ms_floor`: what the kept pairs' arithmetic takes at `gflops`."""
    heads, dim, length, batch = (
        int(str(row[x])) for x in ("heads", "head_dim", "seq_len", "batch")
    )
    pairs = float(str(row["density"])) * length * (length + 1) / 2
    floor = 4 * dim * heads * batch * pairs / (gflops * 1e6)
    return {**row, "ms_floor": floor, "matmul_gflops": round(gflops, 1)}


def machine_gflops(size: int = 2048) -> float:
    """What this process reaches on an fp32 matrix product: the rate that floors are stated at."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0), device="cpu")
    times = time_in_turns({"matmul": lambda: a @ a}, seconds=1.0, repeats=5)
    return 2 * size**3 / times["matmul"].p20 / 1e9
