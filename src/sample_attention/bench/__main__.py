"""`python -m sample_attention.bench`: measure attention on this machine's CPU or GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import InvalidInput, SampleAttentionError
from ..records import Provenance, append_record
from .attention import Row, dense_floor, machine_gflops, measure_case, measure_short
from .cases import CPU_CASES
from .gpu import measure_gpu

RECORDS = Path("benchmarks/records")
GPU_LENGTHS = (8192, 32768, 131072)


def _main() -> int:
    """Measure, append a record each, and say what was reached."""
    options = _options()
    output = options.output or RECORDS / f"{options.device}_attention.jsonl"
    output.unlink(missing_ok=True)
    try:
        (_cpu if options.device == "cpu" else _cuda)(options, output)
    except SampleAttentionError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _cpu(options: argparse.Namespace, output: Path) -> None:
    torch.set_num_threads(options.threads)
    gflops = machine_gflops()
    facts = {**Provenance.collect(seed=0).as_row(), "matmul_gflops": round(gflops, 1)}
    for row in measure_short(CPU_CASES[0], options.seconds):
        _keep(row, facts, gflops, output)
    for case in CPU_CASES:
        if case.seq_len <= options.max_length:
            for row in measure_case(case, options.seconds):
                _keep(row, facts, gflops, output)


def _cuda(options: argparse.Namespace, output: Path) -> None:
    if not torch.cuda.is_available():
        raise InvalidInput("torch sees no NVIDIA GPU; accepted here: --device cpu")
    facts = Provenance.collect("cuda", seed=0).as_row()
    lengths = tuple(x for x in GPU_LENGTHS if x <= options.max_length)
    for row in measure_gpu(lengths, kept=0.09):
        append_record(output, {**row, **facts})
        sys.stderr.write(
            f"{row['seq_len']} density {row['density']:.3f} attend {row['ms_attend']:.2f} ms "
            f"{row['attend_tflops']:.0f} TFLOP/s, dense {row['ms_dense']}\n"
        )


def _keep(row: Row, facts: Mapping[str, object], gflops: float, output: Path) -> None:
    append_record(output, {**row, "s_floor": dense_floor(row, gflops), **facts})
    sys.stderr.write(
        f"{row['input']} {row['seq_len']:>6} {row['preset']:<8} density {row['density']:.3f} "
        f"mass {row['retained_mass_mean']:.3f} dense {row['s_dense']:.4f} s "
        f"total {row['s_total']:.4f} s -> {row['speedup']:.2f}x\n"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sample_attention.bench", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help=f"default: {RECORDS}/DEVICE_attention.jsonl")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU")
    parser.add_argument("--seconds", type=float, default=2.0, help="at least this long per CPU row")
    parser.add_argument("--max-length", type=int, default=131072)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(_main())
