"""Floors of kernels against counts by hand, and whose time a launch is."""

import ast
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sample_attention
from sample_attention import SampledRows, api, preset
from sample_attention.errors import InvalidInput
from sample_attention.lab import work
from sample_attention.lab.bench import kernels
from sample_attention.lab.bench.kernels import KernelTimes, UnknownLaunches, parts_of
from sample_attention.lab.bench.timing import Times, wall_clock
from sample_attention.lab.inputs import Shape, planted_inputs
from sample_attention.lab.work import Call, Rates, Work

SHAPE = Shape(batch=2, num_heads=4, num_kv_heads=2, head_dim=32)
RATES = Rates(flops=1e12, exps=1e10, bytes=1e9)
CPU = torch.device("cpu")
CONFIGS = {
    "pooled": preset("pooled", window=32, dense_prefix=0, dense_tail=0),
    "no pool": preset(
        "pooled", segment=256, sample_stride=32, ranking=SampledRows(), dense_prefix=0, dense_tail=0
    ),
    "paper": preset("paper"),
    "mlsys": preset("mlsys"),
    "held out": preset("pooled", window=32, held_out_rows=3),
    "default": preset("default", window=32, sampled_keys=64),
}
LSE = ("row_lse_kernel", "merge_lse_kernel")
LISTS = ("flag_kernel", "offsets_kernel", "compact_kernel")
BY_SPREAD = ("rank_sum_kernel", "rank_kernel", "heavy_lse_kernel", "sampled_lse_kernel",
             "sampled_mass_kernel", "farthest_rows_kernel", "peak_kernel",
             "threshold_and_flag_kernel",
             *LISTS[1:])  # fmt: skip
LAUNCHES = {
    "pooled": ["finite_kernel", *LSE, "mean_query_kernel", *LSE, "segment_mass_kernel",
                "segment_mass_kernel", "threshold_kernel", *LISTS, "segment_mass_kernel",
                "column_mass_kernel", "threshold_kernel", *LISTS, "fill"],
    "no pool": ["finite_kernel", "finite_kernel", *LSE, "segment_mass_kernel", "threshold_kernel",
                *LISTS],
    "paper": ["finite_kernel", "finite_kernel", *LSE, "column_mass_kernel", "sort", "gather",
              *LISTS],
    "mlsys": ["finite_kernel", "finite_kernel", *LSE, "block_mass_kernel", "sort", *LISTS],
    "held out": ["finite_kernel", *LSE, "mean_query_kernel", *LSE, "segment_mass_kernel",
                 "segment_mass_kernel", "threshold_kernel", *LISTS, *LSE],
    "default": ["finite_kernel", "key_sums_kernel", "moments_kernel", *BY_SPREAD, *BY_SPREAD],
}  # fmt: skip


def planted(length=700):
    return planted_inputs(SHAPE, length, 0.1, torch.float32, CPU, seed=0)


def call_of(name, length=700):
    return Call.of(planted(length), CONFIGS[name])


def test_planted_keys_are_selected():
    inputs = planted(1500)
    plan = api.select(inputs.q, inputs.k, CONFIGS["pooled"])
    columns = plan.columns(1, 0, 11).numel() / 1368
    assert 0.05 < columns < 0.15
    with pytest.raises(InvalidInput, match="density 1"):
        planted_inputs(SHAPE, 64, 1.0, torch.float32, CPU, seed=0)


def test_work_of_a_pass_over_rows():
    call = call_of("pooled", 300)
    rows = [p for p in range(300) if p % 8 == 4]
    found = work.row_lse(call, work.exact_positions(call))
    pairs = 8 * sum(p + 1 for p in rows)
    assert (found.flops, found.exps) == (2 * 32 * pairs, pairs)
    k, q = 4 * 300 * 32 * 4, 8 * len(rows) * 32 * 4
    assert found.bytes == k + q + 8 * len(rows) * 4


def test_columns_and_edges_are_those_of_the_plan():
    call = call_of("pooled")
    everything = api.select(planted().q, planted().k, replace(CONFIGS["pooled"], coverage=1))
    keys = torch.arange(700)
    rows = torch.tensor([0, 31, 32, 200, 699])
    sparse = api.select(planted().q, planted().k, CONFIGS["pooled"])
    align, window = sparse.window_alignment, int(sparse.window[0])
    left = (keys[None] <= (rows // align * align - window)[:, None]).sum(1)
    assert work.edges_in_call(call, rows).tolist() == left.tolist()
    last = [127, 255, 383, 511, 639, 699]
    assert work.listed_columns(call) == sum(max(0, p // 128 * 128 - 31) for p in last)
    assert everything.dense.all()


def test_work_of_attention_counts_pairs_of_all_heads():
    call = call_of("pooled", 100)
    dense = work.attention(call, work.causal_pairs(call))
    assert dense.exps == 8 * sum(range(1, 101))
    assert dense.flops == 4 * 32 * dense.exps
    assert dense.bytes == 2 * (8 + 4) * 100 * 32 * 4 + 8 * 100 * 4
    assert work.attention(call, 7, 3).bytes == dense.bytes + 12


@pytest.mark.parametrize("name", CONFIGS)
def test_every_part_of_a_selection_has_its_work(name):
    inputs, config = planted(), CONFIGS[name]
    plan = api.select(inputs.q, inputs.k, config)
    found = work.work_of_selection(Call.of(inputs, config), plan)
    parts = parts_of([(kernel, 1.0) for kernel in LAUNCHES[name]], config)
    assert found.keys() | {kernels.OTHERS} == parts.keys() | {kernels.OTHERS}
    assert all(x.bytes > 0 and x.flops >= 0 for x in found.values())
    assert sum(len(x) for x in parts.values()) == len(LAUNCHES[name])


def test_launches_go_to_their_parts_in_turn():
    timed = [(name, float(i)) for i, name in enumerate(LAUNCHES["pooled"])]
    parts = parts_of(timed, CONFIGS["pooled"])
    assert (parts["row_lse_rows"], parts["row_lse_means"]) == ([1.0, 2.0], [4.0, 5.0])
    assert (parts["class_pass"], parts["mass_pass"]) == ([6.0, 12.0], [7.0, 13.0])
    assert parts["place_compact"] == [9.0, 10.0, 11.0, 15.0, 16.0, 17.0]
    assert parts["torch_operators"] == [18.0]
    with pytest.raises(UnknownLaunches, match="3 launches of the kernels for 'mass'"):
        parts_of(timed[:13], CONFIGS["pooled"])


def test_the_backend_launches_in_that_order(monkeypatch):
    """The profiler tells launches of one kernel apart only by their order."""
    select = pytest.importorskip("sample_attention.selection.triton.select")
    order = []

    def score(_q, table, *_):
        order.append("row_lse_means" if table.by_sequence else "row_lse_rows")
        return object()

    def write_mass(*_, mass=None, bins=None):
        kinds = {(True, False): "mass_pass", (False, True): "class_pass"}
        order.append(kinds.get((mass is not None, bins is not None), "mass_and_class_pass"))

    monkeypatch.setattr(select, "score", score)
    monkeypatch.setattr(select, "write_mass", write_mass)
    monkeypatch.setattr(select, "mean_queries", lambda *_: None)
    lists = SimpleNamespace(counts=torch.zeros(2, 4, 6), dense=None, decide=lambda *_: None)
    for name in ("pooled", "no pool"):
        inputs, config = planted(), CONFIGS[name]
        problem = select.Problem.of(inputs.q, inputs.k, inputs.v)
        lists.geometry = select.geometry(problem, config)
        order.clear()
        select._select_segments(inputs.q, select.Keys(inputs.k, problem, 1.0), config, lists)
        stages = {kernel: kernels._parts_of_stage(stage, config)
                  for kernel, stage in kernels.STAGES.items()}  # fmt: skip
        scored = dict.fromkeys(stages["row_lse_kernel"])  # each is launched, then merged
        assert tuple(order) == (*scored, *stages["segment_mass_kernel"])


def test_every_kernel_of_the_backend_has_a_stage():
    folder = Path(sample_attention.__file__).parent
    defined = {
        node.name
        for path in folder.rglob("*_kernel.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    assert defined == kernels.STAGES.keys()


def test_the_floor_is_the_slowest_term():
    times, fa3 = Times(0.02, 0.03, 0.04, 5), Times(0.1, 0.1, 0.1, 5)
    row = KernelTimes("attend", times, Work(1e9, 1e8, 2e6), 1).row(RATES, fa3)
    assert (row["floor"], row["floor_ms"]) == ("exp", 10.0)
    assert row["gap"] == pytest.approx(3)
    assert row["share_of_fa3"] == pytest.approx(0.3)
    row = KernelTimes("torch_operators", times, None).row(RATES, None)
    assert row["floor"] is row["floor_ms"] is row["gap"] is row["share_of_fa3"] is None
    json.dumps(row, allow_nan=False)


def test_rows_of_kernels(monkeypatch):
    """All but the device: the eager backend selects and attends, the launches are made up."""
    bench = pytest.importorskip("sample_attention.cli.bench")
    attends = []

    def launches(run):
        run()
        attends.append(1)
        select = len(attends) <= 3  # one to warm up, then two repeats
        names = LAUNCHES["pooled"] if select else ["attend_kernel"]
        return [(name, 1e-3) for name in names]

    monkeypatch.setattr(kernels, "TRITON", "eager")
    monkeypatch.setattr(kernels, "profile_launches", launches)
    monkeypatch.setattr(kernels, "clock_of", lambda _: wall_clock)
    monkeypatch.setattr(kernels, "_host_clock", wall_clock)
    monkeypatch.setattr(bench, "measure_rates", lambda *_: RATES)
    options = bench.KernelOptions(
        (700,), (("pooled", CONFIGS["pooled"]),), shape=SHAPE, repeats=2, dense=("sdpa",)
    )
    rows = list(bench._kernel_rows(options, CPU, torch.float32))
    assert [r["kernel"] for r in rows if "whole" in r["kernel"]] == ["whole select", "whole attend"]
    assert (rows[0]["kernel"], rows[0]["provider"]) == ("dense", "sdpa")
    assert rows[-1]["kernel"] == bench.LAST_KERNEL
    found = {r["kernel"]: r for r in rows}
    assert found["class_pass"]["launches"] == 2
    assert found["class_pass"]["ms"] == pytest.approx(2)
    assert found["whole select"]["launches"] == len(LAUNCHES["pooled"])
    assert found["whole select"]["host_ms"] > 0
    assert found["attend"]["flops"] < rows[0]["flops"]
    assert found["attend"]["gap"] > 0
