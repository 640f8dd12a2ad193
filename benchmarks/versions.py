"""Tests of kernels, transformers and the CPU with the versions of this environment, on record.

    .venv-newest/bin/python benchmarks/versions.py newest [arguments of pytest]

`make test-versions` makes the environment of each set and runs this in it. Appends a line to
benchmarks/records/versions.jsonl, whatever the outcome, and exits with 1 when a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from sample_attention.records import append_record, installed_version

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records" / "versions.jsonl"
INTERPRETED = ["tests/kernels/test_triton_interpreted.py", "tests/kernels/test_triton_select.py"]
TESTS = ["tests/unit", "tests/integration", "tests/kernels"]
ENDS = ("passed", "failed", "error", "skipped", "xfailed", "seconds")


def main() -> int:
    """Run the tests in the interpreter of Triton, then all; record how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=("newest", "oldest"))
    given, arguments = parser.parse_known_args()
    runs = [
        run_tests(INTERPRETED, arguments, TRITON_INTERPRET="1"),
        run_tests([*TESTS, "-m", "not gpu"], arguments),
    ]
    ends = Counter()
    for run in runs:
        ends.update({end: run.pop(end) for end in ENDS})
    row = {"set": given.set, **ends, "platform": platform.platform(), **runs[0]}
    append_record(RECORDS, {**row, "numpy": installed_version("numpy")})
    return int(bool(ends["failed"] or ends["error"]))


def run_tests(tests: list[str], arguments: list[str], **settings: str) -> dict:
    """Run pytest in a process of its own; returns how tests ended and where they ran."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, "-m", "pytest", *tests, "--record", str(record), *arguments]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=False)
        return json.loads(record.read_text("utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
