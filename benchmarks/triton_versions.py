"""Device time of selection and attention under releases of Triton and builds of this package.

    python benchmarks/triton_versions.py [--site DIR ...] [--checkout DIR ...] [--turns 3]

Measures the Triton and the checkout that are here, each other Triton unpacked in a `--site`, and
each other checkout, in turns: one process for each pair and turn, so that ratios stand side by
side. Each result is checked against the reference before it is timed by replaying a CUDA graph.
Appends lines to benchmarks/records/triton_versions.jsonl and prints medians. Needs an H100 or H200.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sample_attention import StripePlan

HERE = Path(__file__).resolve().parents[1]
RECORDS = HERE / "benchmarks" / "records" / "triton_versions.jsonl"
CASES = ((12, 2, 32_768), (32, 8, 32_768), (12, 2, 131_072))
SHARE, SEED, REPLAYS, HEAD_DIM = 0.05, 1, 12, 128


def main() -> None:
    """Measure all pairs, or one as a child."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", action="append", default=[], help="folder with another triton")
    parser.add_argument("--checkout", action="append", default=[], help="another source tree")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RECORDS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        measure()
        return
    pairs = list(itertools.product([str(HERE), *given.checkout], ["", *given.site]))
    rows = []
    for turn in range(given.turns):
        for checkout, site in pairs:
            rows += [{**row, "turn": turn} for row in run_child(checkout, site)]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with given.output.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print_medians(rows)


def run_child(checkout: str, site: str) -> list[dict]:
    """The rows of one process, in which one checkout meets one Triton."""
    path = os.pathsep.join(filter(None, [site, str(Path(checkout) / "src")]))
    settings = {**os.environ, "PYTHONPATH": path, "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child"], env=settings, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [{**row, "tree": Path(checkout).name} for row in lines]


def measure() -> None:
    """Print one line for each case: milliseconds of `select` and of `attend` by each backend."""
    import torch
    import triton

    from sample_attention import SampleAttentionConfig, attend, select
    from sample_attention.lab.bench.gate import check_attend
    from sample_attention.lab.inputs import Shape, planted_inputs
    from sample_attention.lab.records import Provenance

    device, config = torch.device("cuda"), SampleAttentionConfig()
    for heads, kv_heads, length in CASES:
        shape = Shape(1, heads, kv_heads, HEAD_DIM)
        inputs = planted_inputs(shape, length, SHARE, torch.bfloat16, device, SEED)
        q, k, v = inputs.q, inputs.k, inputs.v
        plan = select(q, k, config, backend="triton")
        times, errors = {}, {}
        for backend in ("hopper", "triton"):
            out, lse = attend(q, k, v, plan, backend=backend)
            errors[backend] = str(check_attend(out, lse, (q, k, v), plan, SEED))
        kept = kept_mass(q, k, plan)
        if 1 - kept > 2 * (1 - config.coverage):  # an aim, of a head; here of a few rows
            raise SystemExit(f"the selection keeps {kept:.4f} of the mass, not {config.coverage}")
        times["select"] = replayed(lambda q=q, k=k: select(q, k, config, backend="triton"))
        for backend in errors:
            times[f"attend {backend}"] = replayed(
                lambda b=backend, q=q, k=k, v=v, p=plan: attend(q, k, v, p, backend=b)
            )
        facts = Provenance.collect(device, SEED).as_row()
        row = {"heads": heads, "kv_heads": kv_heads, "length": length, "ms": times, "kept": kept}
        line = json.dumps({**row, "errors": errors, "triton": triton.__version__, **facts})
        sys.stdout.write(line + "\n")


def kept_mass(q: Tensor, k: Tensor, plan: StripePlan) -> float:
    """Mean share of the attention of 64 sampled rows of head 0 that the plan keeps, in fp64."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randint(q.shape[2] // 2, q.shape[2], (64,), generator=generator).to(q.device)
    keys = torch.arange(k.shape[2], device=q.device)
    scores = q[0, 0, rows].double() @ k[0, 0].double().T * HEAD_DIM**-0.5
    scores.masked_fill_(keys > rows[:, None], -torch.inf)
    return float((scores.softmax(-1) * plan.allows(0, 0, rows, keys)).sum(-1).mean())


def replayed(call: Callable[[], object]) -> float:
    """Median milliseconds on the device of one replay of `call` as a CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    times = []
    for _ in range(REPLAYS + 3):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last))
    del kept
    return statistics.median(times[3:])


def print_medians(rows: list[dict]) -> None:
    """One line for each case and part: medians over the turns, and ratios to the first pair."""
    groups: dict[tuple, dict[tuple, list[float]]] = {}
    for row in rows:
        for part, ms in row["ms"].items():
            case = row["heads"], row["kv_heads"], row["length"], part
            groups.setdefault(case, {}).setdefault((row["tree"], row["triton"]), []).append(ms)
    for case, by_pair in groups.items():
        medians = {pair: statistics.median(ms) for pair, ms in by_pair.items()}
        first = next(iter(medians.values()))
        shown = (f"{tree} {x}: {ms:.3f} ({ms / first:.3f})" for (tree, x), ms in medians.items())
        sys.stdout.write(f"{case} | {'; '.join(shown)}\n")


if __name__ == "__main__":
    main()
