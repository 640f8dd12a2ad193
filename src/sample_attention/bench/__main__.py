"""`python -m sample_attention.bench`: measure attention on this machine's CPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import SampleAttentionError
from ..records import Provenance, append_record
from .attention import Row, dense_floor, machine_gflops, measure_case, measure_short
from .cases import CPU_CASES


def _main() -> int:
    """Measure every case, append a record each, and say what was reached."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.output.unlink(missing_ok=True)
    gflops = machine_gflops()
    facts = {**Provenance.collect(seed=0).as_row(), "matmul_gflops": round(gflops, 1)}
    try:
        for case in CPU_CASES:
            if case is CPU_CASES[0]:
                for row in measure_short(case, options.seconds):
                    _keep(row, facts, gflops, options.output)
            if case.seq_len <= options.max_length:
                presets = ("default", "paper", "mlsys") if case.seq_len <= 16384 else ("default",)
                for row in measure_case(case, presets, options.seconds):
                    _keep(row, facts, gflops, options.output)
    except SampleAttentionError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _keep(row: Row, facts: Mapping[str, object], gflops: float, output: Path) -> None:
    append_record(output, {**row, "s_floor": dense_floor(row, gflops), **facts})
    sys.stderr.write(
        f"{row['input']} {row['seq_len']:>6} {row['preset']:<8} density {row['density']:.3f} "
        f"mass {row['retained_mass_mean']:.3f} dense {row['s_dense']:.4f} s "
        f"total {row['s_total']:.4f} s -> {row['speedup']:.2f}x\n"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sample_attention.bench", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/records/cpu_attention.jsonl")
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="at least this long per row")
    parser.add_argument("--max-length", type=int, default=32768)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(_main())
