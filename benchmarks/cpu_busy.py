"""Dense and sparse attention on a CPU, idle and beside other programs that want its cores.

    python benchmarks/cpu_busy.py [--output RECORDS] [--compare CHECKOUT]

Both run in turns in one process, on inputs captured from SmolLM2. `--compare` lets the package of
another checkout take part in the turns, in a process of its own. The busy programs are loops of
Python; they end with the measurement, or after ten minutes. The whole takes some minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from sample_attention import attend, sample_attention, select
from sample_attention.dense import dense
from sample_attention.lab.bench.gate import check_attend, check_dense
from sample_attention.lab.bench.timing import Times, summary, wall_clock
from sample_attention.lab.capture import captured_inputs
from sample_attention.lab.models import Prompt
from sample_attention.lab.records import Row, append_record, commit_of_checkout, origin
from sample_attention.problem import Problem

CHECKOUT = Path(__file__).resolve().parents[1]
RECORDS = CHECKOUT / "benchmarks" / "records" / "cpu_busy.jsonl"
LENGTH = 8192
CAPTURED = (4, 12, 20, 27)
"""Those of `make bench-cpu`, which leaves them in the cache."""
LAYERS = (4, 20)
"""One that keeps few pairs, and the one that keeps most."""
LOADS = (0, 1, 2, 8)
"""Busy programs."""
MOST, FEWEST = 9, 2
"""Runs of each case: as many as that, or fewer that take SECONDS, but no fewer than these."""
SECONDS = 15.0
CPU = torch.device("cpu")
LOOP = "import time\nend = time.monotonic() + 600\nwhile time.monotonic() < end: pass"


class Build:
    """The package of a checkout, in a process that runs what it is told to and says how long."""

    def __init__(self, checkout: Path, inputs: Path) -> None:
        """Start the process; the first answer comes when its results were found right."""
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", inputs],
            env=os.environ | {"PYTHONPATH": str(checkout / "src")},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.commit = self._answer()

    def seconds(self, layer: int, what: str) -> float:
        """Time one run of `dense` or `sparse`."""
        if self.process.stdin is not None:
            self.process.stdin.write(f"{layer} {what}\n")
            self.process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit("a measuring process ended; its error stands above")
        return line.strip()


@contextlib.contextmanager
def started(checkout: Path, inputs: Path) -> Generator[Build]:
    """The build of a checkout, which ends with the block."""
    build = Build(checkout.resolve(), inputs)
    try:
        yield build
    finally:
        build.process.kill()
        build.process.wait()


def serve(inputs: Path) -> None:
    """Answer the commands of a `Build`."""
    runs: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        for layer, qkv in torch.load(inputs).items():
            runs |= {f"{layer} {name}": run for name, run in checked(*qkv).items()}
        print_line(commit_of_checkout() or "unknown")
        for line in sys.stdin:
            print_line(str(wall_clock(runs[line.strip()])))


def checked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    """Dense and sparse on these inputs, run once and compared with the reference."""
    problem = Problem.of(q, k, v)
    runs = {
        "dense": lambda: dense(q, k, v, problem, problem.scale(None)),
        "sparse": lambda: sample_attention(q, k, v),
    }
    plan = select(q, k)
    out, lse = attend(q, k, v, plan)
    check_attend(out, lse, (q, k, v), plan, seed=0)
    check_attend(runs["sparse"](), lse, (q, k, v), plan, seed=0)
    check_dense("dense", runs["dense"](), (q, k, v), seed=0)
    return runs


def print_line(text: str) -> None:
    """Answer whoever reads this process."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def busy(programs: int) -> Generator[None]:
    """So many programs that use a core each, within the block."""
    running = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(programs)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def in_turns(runs: dict[str, Callable[[], float]]) -> dict[str, Times]:
    """Times of runs that say how many seconds they took."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(MOST):
        for name, run in runs.items():
            if len(taken[name]) < FEWEST or sum(taken[name]) < SECONDS:
                taken[name].append(run())
    return {name: summary(seconds) for name, seconds in taken.items()}


def measured(
    build: Build, before: Build | None, layers: Iterable[int]
) -> Generator[tuple[int, Row]]:
    """A layer and its row, for each load."""
    for programs in LOADS:
        with busy(programs):
            for layer in layers:
                runs = {what: partial(build.seconds, layer, what) for what in ("dense", "sparse")}
                if before is not None:
                    runs["sparse_before"] = partial(before.seconds, layer, "sparse")
                times = in_turns(runs)
                milliseconds = {f"ms_{name}": 1e3 * x.p50 for name, x in times.items()}
                spread = {name: asdict(x) for name, x in times.items()}
                yield layer, {"busy": programs, **milliseconds, "seconds": spread}


def main(output: Path, compare: Path | None) -> None:
    """Measure, print and write the records anew."""
    prompt = Prompt("smollm2-135m")
    captured = captured_inputs(prompt, CAPTURED, 1, [LENGTH], torch.float32, CPU)
    inputs = {i: x for i, x in zip(CAPTURED, captured, strict=True) if i in LAYERS}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder, "qkv.pt")
        torch.save({layer: (x.q, x.k, x.v) for layer, x in inputs.items()}, path)
        build = stack.enter_context(started(CHECKOUT, path))
        before = None if compare is None else stack.enter_context(started(compare, path))
        facts = {**origin(CPU, seed=0), "commit": build.commit, "dtype": "float32"}
        if before is not None:
            facts["commit_before"] = before.commit
        output.unlink(missing_ok=True)
        for layer, row in measured(build, before, inputs):
            append_record(output, {"input": inputs[layer].name, "seq_len": LENGTH, **facts, **row})
            print_line(json.dumps({"layer": layer, **row}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RECORDS)
    parser.add_argument("--compare", type=Path, metavar="CHECKOUT")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
    else:
        main(given.output, given.compare)
