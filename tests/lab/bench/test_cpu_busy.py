"""The measurement beside other programs: who takes turns, and that nobody is left running."""

import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from sample_attention.lab.bench.gate import RedGate
from sample_attention.testing import make_qkv

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "cpu_busy.py"


@pytest.fixture
def cpu_busy():
    spec = importlib.util.spec_from_file_location("cpu_busy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_programs_run_within_the_block_only(cpu_busy, monkeypatch):
    started = []

    class Watched(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)

    def measure_badly():
        with cpu_busy.busy(2):
            assert [program.poll() for program in started] == [None, None]
            raise RedGate("wrong")

    with pytest.raises(RedGate):
        measure_badly()
    assert all(program.poll() is not None for program in started)


def test_turns_end_by_count_or_by_time(cpu_busy):
    order = []

    def run(name, seconds):
        order.append(name)
        return seconds

    long = cpu_busy.SECONDS * 2
    times = cpu_busy.in_turns({"short": lambda: run("s", 1e-3), "long": lambda: run("l", long)})
    assert times["short"].repeats == cpu_busy.MOST
    assert times["long"].repeats == cpu_busy.FEWEST
    assert times["long"].p50 == long
    assert "".join(order[:4]) == "slsl"


@pytest.mark.usefixtures("always_sparse")
def test_a_wrong_result_is_not_timed(cpu_busy, monkeypatch):
    q, k, v = make_qkv(1500)
    runs = cpu_busy.checked(q, k, v)
    assert set(runs) == {"dense", "sparse"}
    wrong = cpu_busy.sample_attention
    monkeypatch.setattr(cpu_busy, "sample_attention", lambda *x: wrong(*x) + torch.ones(()))
    with pytest.raises(RedGate):
        cpu_busy.checked(q, k, v)
