"""Tests of kernels, transformers and the CPU with the versions of this environment, on record.

    .venv-newest/bin/python benchmarks/versions.py newest [TESTS ...]

`make test-versions` makes the environment of each set and runs this in it. Each run of pytest adds
a line to benchmarks/records/versions.jsonl, whatever its outcome; exits with 1 when a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from sample_attention.lab.records import append_record, installed_version

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records" / "versions.jsonl"
INTERPRETED = ["tests/kernels/test_triton_interpreted.py", "tests/kernels/test_triton_select.py"]
TESTS = ["tests/integration", "tests/kernels", "tests/unit"]


def main() -> int:
    """Run what is asked for, or all: first in the interpreter of Triton, then the rest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=("newest", "oldest"))
    parser.add_argument("tests", nargs="*", help="instead of all")
    given = parser.parse_args()
    failed = 0
    if not given.tests:
        failed += run_tests(given.set, INTERPRETED, TRITON_INTERPRET="1")
    return int(failed + run_tests(given.set, given.tests or TESTS) > 0)


def run_tests(versions: str, tests: list[str], **settings: str) -> int:
    """Run pytest in a process of its own and record how tests ended; returns how many failed."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, "-m", "pytest", *tests, "-m", "not gpu", "--record", str(record)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=False)
        ends = json.loads(record.read_text("utf-8"))
    row = {"set": versions, "interpreted": "TRITON_INTERPRET" in settings}
    system = f"{platform.system()} {platform.machine()}"
    facts = {"numpy": installed_version("numpy"), "platform": system}
    append_record(RECORDS, {**row, **ends, **facts})
    return ends["failed"] + ends["error"]


if __name__ == "__main__":
    raise SystemExit(main())
