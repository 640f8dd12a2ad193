"""The targets of the Makefile that measure: what they remove, and what they write."""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks" / "records").glob("*.json*")
)


def commands(target, **variables):
    """The lines that a target would run."""
    given = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        ["make", "--dry-run", target, *given], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.replace("\\\n", " ").splitlines()


def removed(lines):
    patterns = [x for line in lines if (m := re.search(r"\brm (.*)", line)) for x in m[1].split()]
    return {path for path in RECORDS for pattern in patterns if fnmatch(path, pattern)}


def written(lines):
    return {x for line in lines for x in re.findall(r"--(?:output|record) (\S+)", line)}


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_measuring_a_gpu_removes_no_record(gpu):
    lines = commands("bench-gpu", GPU=gpu)
    assert f"benchmarks/records/{gpu}_attention.jsonl" in written(lines)
    assert not removed(lines)


def test_measuring_a_cpu_removes_only_what_it_writes():
    lines = commands("bench-cpu")
    assert removed(lines) == written(lines) & set(RECORDS)


def test_results_on_gpus_have_one_home():
    assert written(commands("test-gpu")) == {"benchmarks/records/gpu_tests.jsonl"}
    assert [path for path in RECORDS if "_tests" in path] == ["benchmarks/records/gpu_tests.jsonl"]


def test_removals_are_seen():
    assert "benchmarks/records/h100_dense.jsonl" in removed(
        ["rm -f benchmarks/records/h100_*.jsonl"]
    )
