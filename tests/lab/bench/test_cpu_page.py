"""The tables of the page about CPUs are those of the records."""

import json
import sys
from pathlib import Path

import pytest

MAKERS = Path(__file__).resolve().parents[3] / "benchmarks" / "pages"
FACTS = {
    "input": "captured:model/text/4", "seq_len": 8192, "device": "CPU", "threads": 2,
    "dtype": "float32", "torch": "9.9", "commit": "c" * 40,
}  # fmt: skip


@pytest.fixture
def cpu_page(monkeypatch):
    monkeypatch.syspath_prepend(str(MAKERS))
    sys.modules.pop("cpu_page", None)
    import cpu_page

    return cpu_page


def test_tables_are_up_to_date(cpu_page):
    for page, text in cpu_page.tables().items():
        assert page.read_text("utf-8") == text, "python benchmarks/pages/make.py writes the tables"


def test_beside_other_programs(cpu_page, tmp_path):
    path = tmp_path / "cpu_busy.jsonl"
    assert cpu_page.read_busy(path) == []
    rows = [
        {**FACTS, "busy": 8, "ms_dense": 3000.0, "ms_sparse": 1500.0, "ms_sparse_before": 24000.0},
        {**FACTS, "busy": 0, "ms_dense": 1.0, "ms_sparse": 9.0},
        {**FACTS, "busy": 0, "ms_dense": 500.0, "ms_sparse": 400.0},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    lines = cpu_page.table(
        cpu_page.read_busy(path), cpu_page.BUSY, cpu_page.BUSY_RECORDS, ""
    ).splitlines()
    assert lines[2:4] == [  # of a case the last record counts
        "| 0 | 4 | 8,192 | 500 | 400 | 1.25× | – |",
        "| 8 | 4 | 8,192 | 3,000 | 1,500 | 2.00× | 24,000 |",
    ]
    assert lines[-1].startswith("CPU, 2 threads, float32, torch 9.9, commit cccccccccc;")
