"""Cases for another machine are left out where they are collected, and those for this one are not.

In processes of their own, whose torch says that it has another GPU.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COLLECT = """
import sys
import pytest
import torch
capability = tuple(map(int, sys.argv[1]))
torch.cuda.is_available = lambda: bool(capability)
torch.cuda.get_device_capability = lambda *_: capability
sys.exit(pytest.main(["--collect-only", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""
FILES = {
    "gpu": "tests/kernels/test_gpu.py",
    "hopper": "tests/kernels/test_hopper.py",
    "interpreted": "tests/kernels/test_triton_interpreted.py",
    "any": "tests/properties/test_invariance.py",
}


def collected(capability, interpret, *options):
    """The cases of each file, and the lines on those left out."""
    command = [sys.executable, "-c", COLLECT, capability, *FILES.values(), *options]
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = {
        name: re.findall(rf"^{re.escape(path)}::(.*)$", done.stdout, re.MULTILINE)
        for name, path in FILES.items()
    }
    return cases, dict(re.findall(r"^(\d+) cases are for (.*)$", done.stdout, re.MULTILINE))


def backends(cases):
    return {name for case in cases for name in re.findall(r"\[(eager|triton|hopper)", case)}


@pytest.fixture(scope="module")
def on_cpu():
    return collected("", "0")


def test_a_cpu_leaves_out_what_needs_a_gpu(on_cpu):
    cases, left_out = on_cpu
    assert not cases["gpu"]
    assert cases["hopper"]
    assert not [case for case in cases["hopper"] if "cuda" in case]
    assert "machines with an NVIDIA GPU" in left_out.values()


def test_a_gpu_has_all_its_cases():
    cases, left_out = collected("90", "0")
    assert cases["gpu"]
    assert [case for case in cases["hopper"] if "cuda" in case]
    assert not [need for need in left_out.values() if "GPU" in need]


def test_another_gpu_leaves_out_what_needs_hopper(on_cpu):
    cases, left_out = collected("80", "0")
    assert cases["gpu"]
    assert cases["hopper"] == on_cpu[0]["hopper"]
    assert "GPUs of sm_90" in left_out.values()


def test_the_interpreter_has_its_own_cases(on_cpu):
    cases, left_out = collected("", "1", "-m", "not gpu")
    assert cases["interpreted"]
    assert not on_cpu[0]["interpreted"]
    assert backends(cases["any"]) == {"eager", "triton"}
    assert backends(on_cpu[0]["any"]) == {"eager"}
    assert [need for need in on_cpu[1].values() if "TRITON_INTERPRET" in need]
    (need,) = left_out.values()  # and cases that were not asked for are not counted
    assert "triton: torch.float64 in Triton's interpreter" in need
    assert [case for case in cases["any"] if "eager-torch.float64" in case]
    assert not [case for case in cases["any"] if "triton-torch.float64" in case]
