"""Each kernel of a selection and of attending on its own: device time beside its floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ...api import attend, select
from ...config import SampleAttentionConfig
from ...errors import SampleAttentionError
from ...plan import StripePlan
from ...problem import Problem
from ...routing.engines import choose_attention
from ..contenders import dense_providers
from ..inputs import Inputs
from ..records import Row
from ..work import Call, Rates, Work, attention, causal_pairs, work_of_selection
from .gate import check_attend, check_dense
from .timing import Times, clock_of, summary, time_in_turns

TRITON = "triton"
OTHERS = "torch_operators"
"""All that is not a kernel of ours: filling, and in presets without segments the sort."""

STAGES = {
    "finite_kernel": "finite", "mean_query_kernel": "mean",
    "row_lse_kernel": "lse", "merge_lse_kernel": "lse",
    "segment_mass_kernel": "mass", "column_mass_kernel": "mass", "block_mass_kernel": "block",
    "threshold_kernel": "threshold", "flag_kernel": "lists", "offsets_kernel": "lists",
    "compact_kernel": "lists", "key_sums_kernel": "key_sums", "moments_kernel": "moments",
    "farthest_rows_kernel": "outlier_rows", "peak_kernel": "peaks",
    "rank_sum_kernel": "rank_probes", "rank_kernel": "rank", "heavy_lse_kernel": "heavy_lse",
    "sampled_lse_kernel": "probe_lse", "sampled_mass_kernel": "probe_mass",
    "threshold_and_flag_kernel": "decide",
    "attend_kernel": "attend", "gather_attend_kernel": "attend", "merge_splits_kernel": "attend",
}  # fmt: skip
"""The stage that each Triton kernel is launched for, as records name it."""

Launch = tuple[str, float]
"""Name of a kernel and the seconds it ran on the device."""


class UnknownLaunches(SampleAttentionError):
    """The launches of a call are not those that the configuration should make."""


@dataclass(frozen=True)
class KernelTimes:
    """One line of the table of kernels.

    Attributes:
        kernel: as records name it.
        times: of the device.
        work: the least that has to be done; None where there is no formula.
        launches: how often the device is given something per call.
        host: seconds until the call returns, for whole calls.
        provider: of dense attention, or the backend that attends.
    """

    kernel: str
    times: Times
    work: Work | None
    launches: int | None = None
    host: Times | None = None
    provider: str | None = None

    def row(self, rates: Rates, fa3: Times | None) -> Row:
        """Times in milliseconds, the floor and what follows from them.

        Args:
            rates: of this machine.
            fa3: times of FA3 in the same run; None where it was not measured.
        """
        terms = {} if self.work is None else self.work.seconds(rates)
        name = max(terms, key=terms.__getitem__, default=None)
        floor = terms[name] if name is not None else None
        return {
            "kernel": self.kernel, "provider": self.provider, "launches": self.launches,
            "ms": self.times.p50 * 1000, "ms_p20": self.times.p20 * 1000,
            "ms_p80": self.times.p80 * 1000, "repeats": self.times.repeats,
            "host_ms": None if self.host is None else self.host.p50 * 1000,
            "flops": self.work and self.work.flops, "exps": self.work and self.work.exps,
            "bytes": self.work and self.work.bytes,
            "floor_ms": floor and floor * 1000, "floor": name,
            "gap": floor and self.times.p50 / floor,
            "share_of_fa3": fa3 and self.times.p50 / fa3.p50, "rates": asdict(rates),
        }  # fmt: skip


def measure_kernels(
    inputs: Inputs, config: SampleAttentionConfig, repeats: int, seed: int
) -> tuple[StripePlan, list[KernelTimes]]:
    """Every kernel of selecting and attending, and both calls as a whole; correctness first.

    Args:
        inputs: on an NVIDIA GPU.
        config: the rule.
        repeats: runs of each call, under the profiler and again without it.
        seed: of the rows that are checked.

    Returns:
        The plan, and what was measured.

    Raises:
        RedGate: a result is beyond the error budget on these inputs.
        UnsupportedProblem: Triton refuses.
        UnknownLaunches: the profiler saw other kernels than it should.
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    plan = select(q, k, config, backend=TRITON)
    backend = choose_attention("auto", Problem.of(q, k, v), plan.form)
    out, lse = attend(q, k, v, plan, backend=backend)
    check_attend(out, lse, (q, k, v), plan, seed)
    del out, lse
    call = Call.of(inputs, config)
    pairs = float(plan.density().mean()) * causal_pairs(call)
    selecting = work_of_selection(call, plan)
    attending = attention(call, pairs, int(plan.counts.sum()))
    calls: dict[str, Callable[[], object]] = {
        "select": lambda: select(q, k, config, backend=TRITON),
        "attend": lambda: attend(q, k, v, plan, backend=backend),
    }
    found: list[KernelTimes] = []
    for name, run in calls.items():
        work = selecting if name == "select" else {"attend": attending}
        found += [_by(backend, x) for x in _measured_call(name, run, config, work, repeats)]
    return plan, found


def measure_dense(
    inputs: Inputs, names: Sequence[str], repeats: int, seed: int
) -> dict[str, KernelTimes]:
    """Every dense provider, by name; correctness first.

    Args:
        inputs: on an NVIDIA GPU.
        names: of providers; empty: all that accept.
        repeats: runs of each.
        seed: of the rows that are checked.

    Raises:
        RedGate: a result is beyond the error budget on these inputs.
        UnsupportedProblem: a dense provider refuses.
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    problem = Problem.of(q, k, v)
    providers = {p.name: p for p in dense_providers(names, problem)}
    for name, run in providers.items():
        check_dense(name, run(q, k, v, problem, problem.scale(None)), (q, k, v), seed)
    times = time_in_turns(
        {
            name: (lambda run=run: run(q, k, v, problem, problem.scale(None)))
            for name, run in providers.items()
        },
        seconds=0, repeats=repeats, clock=clock_of(q.device),
    )  # fmt: skip
    call = Call.of(inputs, SampleAttentionConfig())
    work = attention(call, causal_pairs(call))
    return {name: KernelTimes("dense", x, work, provider=name) for name, x in times.items()}


def parts_of(launches: Iterable[Launch], config: SampleAttentionConfig) -> dict[str, list[float]]:
    """Seconds of each launch of one call, by the part of the algorithm that it computes.

    A kernel that serves several parts is launched for them in turn.

    Raises:
        UnknownLaunches: a kernel was not launched equally often for each of its parts.
    """
    stages: dict[str, list[float]] = {}
    for kernel, seconds in launches:
        stages.setdefault(STAGES.get(kernel, OTHERS), []).append(seconds)
    parts: dict[str, list[float]] = {}
    for stage, times in stages.items():
        names = _parts_of_stage(stage, config)
        if len(times) % len(names):
            raise UnknownLaunches(
                f"{len(times)} launches of the kernels for '{stage}'; accepted: a multiple of "
                f"{len(names)} ({', '.join(names)}); is the table of kernels up to date?"
            )
        for name, seconds in zip(cycle(names), times, strict=False):
            parts.setdefault(name, []).append(seconds)
    return parts


def profile_launches(run: Callable[[], object]) -> list[Launch]:
    """What one run gives the device, in the order in which it starts there."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events: list[Any] = [x for x in profiler.events() or () if x.device_type.name == "CUDA"]
    spans = sorted((x.time_range.start, x.time_range.end, x.name) for x in events)
    return [(name, (stop - start) / 1e6) for start, stop, name in spans]


def _parts_of_stage(stage: str, config: SampleAttentionConfig) -> tuple[str, ...]:
    ranked = config.pool is not None
    scored = [] if config.spread else ["row_lse_rows", *["row_lse_means"] * ranked]
    scored += ["row_lse_held_out"] * (config.held_out > 0)
    mass = ("class_pass", "mass_pass") if ranked else ("mass_and_class_pass",)
    return {
        "finite": ("finite_check",), "mean": ("mean_queries",), "block": ("block_mass",),
        "lists": ("place_compact",), "rank": ("rank_pass",),
        "lse": tuple(x for part in scored for x in (part, part)),  # in chunks, then merged
        "mass": mass if config.segment is not None else ("column_mass",),
    }.get(stage, (stage,))  # fmt: skip


def _measured_call(
    name: str, run: Callable[[], object], config: SampleAttentionConfig,
    work: Mapping[str, Work], repeats: int,
) -> list[KernelTimes]:  # fmt: skip
    """The kernels of a call, in the order of their work, then the call as a whole."""
    profile_launches(run)  # the first one also starts the profiler
    runs = [parts_of(profile_launches(run), config) for _ in range(repeats)]
    parts = {part: [sum(x.get(part, ())) for x in runs] for part in runs[-1]}
    if not parts.keys() & work.keys():
        raise UnknownLaunches(f"the profiler saw no kernel of '{name}'; it needs access to CUPTI")
    found = [
        KernelTimes(part, summary(seconds), work.get(part), len(runs[-1][part]))
        for part, seconds in parts.items()
    ]
    clock = clock_of(torch.device("cuda"))
    times = time_in_turns({name: run}, seconds=0, repeats=repeats, clock=clock)
    host = time_in_turns({name: run}, seconds=0, repeats=repeats, clock=_host_clock)
    launches = sum(len(x) for x in runs[-1].values())
    return [*found, KernelTimes(f"whole {name}", times[name], None, launches, host[name])]


def _by(backend: str, row: KernelTimes) -> KernelTimes:
    """The row of a kernel of ours that attends, with the backend it belongs to."""
    return replace(row, provider=backend) if row.kernel == "attend" else row


def _host_clock(run: Callable[[], object]) -> float:
    """Seconds until a call returns, with a device that has nothing else to do."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
