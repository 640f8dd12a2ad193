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
import statistics
import sys
from pathlib import Path

from turns import HERE, kept_mass, replayed, run_child

RECORDS = HERE / "benchmarks" / "records" / "triton_versions.jsonl"
CASES = ((12, 2, 32_768), (32, 8, 32_768), (12, 2, 131_072))
SHARE, SEED, HEAD_DIM = 0.05, 1, 128


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
            rows += [{**row, "turn": turn} for row in child_rows(checkout, site)]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with given.output.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print_medians(rows)


def child_rows(checkout: str, site: str) -> list[dict]:
    """The rows of one process, in which one checkout meets one Triton."""
    text = run_child(__file__, checkout, "--child", site=site, TRITON_DEFAULT_FP_FUSION="1")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
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
