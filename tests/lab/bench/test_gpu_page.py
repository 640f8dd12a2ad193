"""The page of GPU measurements, from made-up records: none of these numbers was measured."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from sample_attention.config import SampleAttentionConfig

MAKERS = Path(__file__).resolve().parents[3] / "benchmarks" / "pages"
FACTS = {"device": "NVIDIA TEST", "torch": "9.9", "commit": "c" * 40, "dtype": "bfloat16",
         "versions": {"torch": "9.9", "fa3-fwd": "0.1"}, "threads": 1}  # fmt: skip
SIZES = {"heads": 12, "kv_heads": 2, "head_dim": 128, "batch": 1}


@pytest.fixture
def gpu_page(monkeypatch):
    monkeypatch.syspath_prepend(str(MAKERS))
    sys.modules.pop("gpu_page", None)
    import gpu_page

    return gpu_page


def whole(layer, ms_total, **fields):
    config = SampleAttentionConfig.preset("pooled", **fields.pop("config", {}))
    return {
        **FACTS, **SIZES, "input": f"captured:model/text/{layer}", "seq_len": 32768, "yarn": 4.0,
        "preset": "pooled", "coverage": config.coverage, "config": asdict(config),
        "routed": False, "route": "sparse", "backend": "triton", "density": 0.1,
        "retained_mass_mean": 0.95, "ms_select": 1.0, "ms_attend": 2.0, "ms_total": ms_total,
        "ms_dense": {"fa3": 12.0, "sdpa": 20.0}, **fields,
    }  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_without_records_every_section_says_so(gpu_page, tmp_path):
    tables = gpu_page.gpu_tables(tmp_path)
    assert set(tables.values()) == {gpu_page.NOTHING}
    (tmp_path / "h100_attention.jsonl").write_text("", "utf-8")
    assert gpu_page.gpu_tables(tmp_path) == tables


def test_rows_are_means_of_layers_by_rule(gpu_page, tmp_path):
    other = {"segment": 4096, "row_stride": 32, "pool": None}
    rows = [whole(3, 3.0), whole(10, 5.0), whole(3, 6.0, config=other), whole(3, 99.0),
            whole(17, 6.0, seq_len=1024, routed=True, route="dense", ms_select=None,
                  ms_attend=None)]  # fmt: skip
    write(tmp_path / "h100_attention.jsonl", rows)
    tables = gpu_page.gpu_tables(tmp_path)
    means, named = (x for x in tables["whole"].splitlines() if x.startswith("| model"))
    case = "| model, text, YaRN 4 | 32,768 | 12/2 | 2 | triton | pooled | 0.95 "
    assert f"{case}| 0.100 | 0.950 | 1.00" in means
    assert means.endswith("| 52.00 | 12.00 | 12.00 (fa3) | 0.23× |")  # of a layer the last counts
    assert "pooled, segment=4096, row_stride=32, pool=none" in named
    assert "| 1,024 | dense |" in tables["routed"]
    assert "2.00×" in tables["routed"]
    assert "NVIDIA TEST, bfloat16, torch 9.9, fa3-fwd 0.1, commit cccccccccc." in tables["whole"]
    assert tables["attend"] == tables["kernels"] == tables["ttft"] == gpu_page.NOTHING


def test_rows_of_two_gpus_have_no_common_mean(gpu_page, tmp_path):
    write(tmp_path / "h100_attention.jsonl", [whole(3, 3.0)])
    write(tmp_path / "h200_attention.jsonl", [whole(10, 6.0, device="NVIDIA OTHER")])
    table = gpu_page.gpu_tables(tmp_path)["whole"]
    found = [line.split("|")[-3:-1] for line in table.splitlines() if "text, YaRN" in line]
    assert sorted(found) == [[" 2.00× ", " OTHER "], [" 4.00× ", " TEST "]]
    assert "NVIDIA TEST / NVIDIA OTHER" in table


def test_old_rows_of_random_lists_are_read(gpu_page, tmp_path):
    row = {**FACTS, **SIZES, "input": "random", "seq_len": 8192, "preset": None, "density": 0.1,
           "backend": "triton", "ms_attend": 1.0, "ms_dense": {"sdpa": 2.0},
           "attend_tflops": 300.0}  # fmt: skip
    write(tmp_path / "h100_attention.jsonl", [row])
    table = gpu_page.gpu_tables(tmp_path)["attend"]
    assert "| 8,192 | 12/2 | triton | 0.100 | 1.00 | 300 | – | – | – |" in table


def test_kernels_and_first_tokens(gpu_page, tmp_path):
    kernel = {**FACTS, **SIZES, "input": "planted", "seq_len": 8192, "kernel": "dense",
              "provider": "fa3", "launches": None, "ms": 2.0, "floor_ms": 1.0, "floor": "tensor",
              "gap": 2.0, "share_of_fa3": 1.0, "host_ms": None}  # fmt: skip
    ttft = {**FACTS, "model": "m", "text": "t", "seq_len": 8192, "method": "sample_attention",
            "ttft_ms": 50.0, "ttft_ms_p20": 49.0, "ttft_ms_p80": 51.0, "density": 0.2,
            "sparse_layers": 28, "same_first_token": True, "next_token_kl": 0.01}  # fmt: skip
    write(tmp_path / "h100_kernels.jsonl", [kernel])
    write(tmp_path / "h100_ttft.jsonl", [ttft])
    tables = gpu_page.gpu_tables(tmp_path)
    expected = "| dense fa3 | 8,192 | – | – | – | 2.000 | 1.000 | tensor | 2.0 | 100.0 % | – |"
    assert expected in tables["kernels"]
    assert "| m, t | 8,192 | sample-attention | 50.0 |" in tables["ttft"]


def test_pages_have_a_place_for_every_table(gpu_page, tmp_path):
    pages = (gpu_page.PAGE, gpu_page.ROOT / "README.md")
    texts = gpu_page.gpu_pages({page: page.read_text("utf-8") for page in pages}, tmp_path)
    places = sum(text.count(gpu_page.NOTHING) for text in texts.values())
    assert places == len(gpu_page.gpu_tables(tmp_path))
    assert texts[pages[0]].rstrip().endswith("say what else can be measured.")
