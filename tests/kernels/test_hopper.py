"""The Hopper kernel against the oracle: in the emulator, and on an H100 or H200."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("triton.experimental.gluon", reason="no triton with Gluon is installed")

from sample_attention import SampleAttentionConfig, SampledRows, Sequences, preset, select
from sample_attention.attention import hopper
from sample_attention.attention.hopper import attend as launches
from sample_attention.attention.hopper import softmax_kernel
from sample_attention.problem import Problem, as_batched
from sample_attention.selection.geometry import plan_form
from sample_attention.testing import (
    assert_matches_oracle,
    make_pages,
    make_plan,
    make_qkv,
    nan_poison,
)

from .gluon_emulator import emulate

PROGRAMS = 3
"""In the emulator: several tiles for each, and another number of them."""

CONFIGS = {
    "default": SampleAttentionConfig(dense_prefix=128, window=100, coverage=0.5),
    "pooled": preset("pooled", dense_prefix=128, window=100, coverage=0.5),
    "segments-of-256": preset(
        "pooled", dense_prefix=0, dense_tail=0, window=100, segment=256, coverage=0.6
    ),
    "segments-of-512": preset(
        "pooled", dense_prefix=0, dense_tail=0, window=1, segment=512, ranking=SampledRows(),
        sample_stride=16, coverage=0.9,
    ),
}  # fmt: skip
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
on_hopper = pytest.mark.gpu(hopper.CAPABILITY)


RAGGED = (500, 100, 1, 300), (500, 300, 700, 300)
"""Queries and keys of sequences in one batch: some of a single small split, some of several."""


def move_maxima(tops, m):
    """Maxima of the rows, moved in the warps (16 rows) where one is passed by much."""
    moves = (tops > m + softmax_kernel.ROOM.value).view(4, -1).any(1).repeat_interleave(16)
    moved = torch.where(moves[:, None], torch.maximum(m, tops.amax(1, keepdim=True)), m)
    return moved, (m - moved).exp2()


ASSEMBLY = {
    softmax_kernel.MOVE_MAXIMA.value: move_maxima,
    softmax_kernel.RESCALE_64.value: torch.mul,
    softmax_kernel.RESCALE_128.value: torch.mul,
}


class Emulated:
    """Stands for a kernel: a launch runs in the emulator, roles take turns as the seed says."""

    def __init__(self, kernel, seed=0):
        self.kernel, self.seed = kernel, seed

    def __getitem__(self, grid):
        def launch(*args, num_warps, **constants):
            emulate(
                self.kernel, grid, *args, num_warps=num_warps, seed=self.seed,
                assembly=ASSEMBLY, **constants,
            )  # fmt: skip

        return launch


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=on_hopper)])
def device(request, monkeypatch):
    if request.param == "emulated":
        for name in ("gather_attend_kernel", "merge_splits_kernel"):
            monkeypatch.setattr(launches, name, Emulated(getattr(launches, name)))
        monkeypatch.setattr(launches, "multiprocessors", lambda _: PROGRAMS)
        return torch.device("cpu")
    return request.getfixturevalue("hopper_gpu")


@pytest.fixture(params=[128, 384], ids="splits of {}".format)
def short_runs(request, monkeypatch):
    monkeypatch.setattr(launches, "SPLIT_KEYS", request.param)


@pytest.fixture
def hopper_gpu():
    return torch.device("cuda")


def inputs(device, q_len, kv_len=None, *, dtype=torch.bfloat16, dim=64, heads=2, kv_heads=1):
    shape = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim, "dtype": dtype}
    return [x.to(device) for x in make_qkv(q_len, kv_len, **shape)]


def attend(q, k, v, plan):
    problem = Problem.of(q, k, v, None if plan.sequences.uniform else plan.sequences)
    q, k, v = (as_batched(x, problem) for x in (q, k, v))
    with nan_poison():
        out, lse = hopper.engine.attend(q, k, v, problem, plan, problem.scale(None))
    return (out[0].transpose(0, 1), lse[0]) if problem.sequences.packed else (out, lse)


def check(q, k, v, plan):
    out, lse = attend(q, k, v, plan)
    assert_matches_oracle(out, lse, q, k, v, plan)
    return out, lse


def by_hand(q, k, lists, *, window):
    sequences = Problem.of(q, k, k).sequences
    return make_plan(sequences, lists, segment=128, window=window, window_alignment=128)


@each_config
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_matches_the_oracle(device, config, dtype, dim):
    q, k, v = inputs(device, 900, dtype=dtype, dim=dim)
    check(q, k, v, select(q, k, config, backend="eager"))


@each_config
@pytest.mark.parametrize(
    ("heads", "kv_heads", "q_len", "kv_len"),
    [(7, 1, 333, 500), (2, 2, 1, 300), (6, 1, 129, 129), (2, 2, 64, 579), (3, 1, 127, 128)],
)
def test_awkward_shapes(device, config, heads, kv_heads, q_len, kv_len):
    q, k, v = inputs(device, q_len, kv_len, heads=heads, kv_heads=kv_heads)
    check(q, k, v, select(q, k, config, backend="eager"))


@pytest.mark.parametrize("seed", range(1, 7))
def test_roles_may_take_turns_in_any_order(device, monkeypatch, seed):
    if device.type == "cpu":
        monkeypatch.setattr(launches.gather_attend_kernel, "seed", seed)
    q, k, v = inputs(device, 700, heads=3)
    check(q, k, v, select(q, k, CONFIGS["default"], backend="eager"))


def test_rows_without_a_key_are_zero(device):
    q, k, v = inputs(device, 257, heads=1)
    out, lse = check(q, k, v, by_hand(q, k, [[[[], [3], []]]], window=0))
    assert not out[0, 0, 0].any()
    assert not out[0, 0, 256].any()
    assert torch.isneginf(lse[0, 0, 256])


def test_dense_segments_and_empty_lists(device):
    q, k, v = inputs(device, 500)
    lists = [[[-1], [], [-1], [0, 5, 200]], [[], [0], list(range(200)), [-1]]]
    check(q, k, v, by_hand(q, k, [lists], window=30))


@pytest.mark.parametrize("entries", [1, 127, 128, 129, 400])
def test_lists_that_go_on_past_a_tile(device, entries):
    """Segments of 1,024 rows: every tile takes what lies left of its own window."""
    q, k, v = inputs(device, 1024, heads=1)
    sequences = Problem.of(q, k, k).sequences
    keys = torch.randperm(900, generator=torch.Generator().manual_seed(entries))[:entries].tolist()
    plan = make_plan(sequences, [[[keys]]], segment=1024, window=100, window_alignment=128)
    check(q, k, v, plan)


def test_strides_that_rows_cannot_be_copied_by(device):
    q, k, v = inputs(device, 300)
    plan = select(q, k, CONFIGS["default"], backend="eager")
    expected = attend(q, k, v, plan)
    wide = [torch.cat([x, x[..., :8]], -1)[..., :64] for x in (q, k, v)]
    out, lse = attend(*wide, plan)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


def test_keys_and_values_of_different_strides(device):
    q, k, v = inputs(device, 300, heads=4, kv_heads=2)
    plan = select(q, k, CONFIGS["default"], backend="eager")
    turned = v.transpose(1, 2).contiguous().transpose(1, 2)
    assert turned.stride() != k.stride()
    assert torch.equal(attend(q, k, turned, plan)[0], attend(q, k, v, plan)[0])


@each_config
@pytest.mark.parametrize("page_size", [1, 5, 16, 64])
def test_pages_do_not_change_a_bit(device, page_size, config):
    q, k, v = (x[0].transpose(0, 1) for x in inputs(device, 500, 900))
    q_ends, kv_ends = torch.tensor([0, 330, 331, 500]), torch.tensor([0, 500, 501, 900])
    packed = Sequences.packed_from(q_ends.to(device), kv_ends.to(device))
    k_pages, v_pages, paged = make_pages(k, v, packed, page_size)
    plan = select(q, k, config, sequences=packed, backend="eager")
    expected = check(q, k, v, plan)
    out, lse = attend(q, k_pages, v_pages, replace(plan, sequences=paged))
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


def test_a_call_does_not_depend_on_its_batch(device):
    q, k, v = (torch.cat([x, x.flip(2)]) for x in inputs(device, 600))
    both = attend(q, k, v, select(q, k, CONFIGS["default"], backend="eager"))
    alone = select(q[:1], k[:1], CONFIGS["default"], backend="eager")
    assert torch.equal(attend(q[:1], k[:1], v[:1], alone)[0], both[0][:1])


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(
    ("q_len", "kv_len"), [(900, 900), (896, 896), (40, 700), (130, 1025), (1, 513)], ids=str
)
def test_dense_tails_of_several_runs(device, q_len, kv_len, dim):
    q, k, v = inputs(device, q_len, kv_len, dim=dim, heads=3)
    check(q, k, v, select(q, k, CONFIGS["default"], backend="eager"))


@pytest.mark.usefixtures("short_runs")
def test_only_dense_tiles_at_the_end_are_split(device):
    q, k, v = inputs(device, 500, heads=3)
    dense, sparse = [[-1], [-1], [3], [-1]], [[-1], [], [-1], [0, 5, 200]]
    check(q, k, v, by_hand(q, k, [[dense, sparse, [[]] * 4]], window=0))


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("page_size", [0, 16])
@pytest.mark.parametrize("known", [True, False], ids=["lengths known", "lengths on the device"])
def test_splits_of_a_sequence_do_not_depend_on_its_batch(device, page_size, known):
    packed, (q, k, v) = ragged(device)
    plan = select(q, k, CONFIGS["default"], sequences=packed, backend="eager")
    k_given, v_given, sequences = k, v, packed
    if page_size:
        k_given, v_given, sequences = make_pages(k, v, packed, page_size)
    if not known:
        sequences = replace(sequences, host_rows=None)
    out, lse = attend(q, k_given, v_given, replace(plan, sequences=sequences))
    for _, q_start, q_len, kv_start, kv_len in packed.rows():
        rows, keys = slice(q_start, q_start + q_len), slice(kv_start, kv_start + kv_len)
        one = [x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys])]
        alone = check(*one, select(*one[:2], CONFIGS["default"], backend="eager"))
        assert torch.equal(out[rows].transpose(0, 1), alone[0][0])
        assert torch.equal(lse[:, rows], alone[1][0])


def ragged(device):
    """The sequences of RAGGED, one after another, and their q, k and v."""
    q_ends, kv_ends = (torch.tensor([0, *x]).cumsum(0) for x in RAGGED)
    packed = Sequences.packed_from(q_ends.to(device), kv_ends.to(device))
    tensors = inputs(device, int(q_ends[-1]), int(kv_ends[-1]))
    return packed, [x[0].transpose(0, 1) for x in tensors]


def test_room_for_runs_is_linear_in_the_keys(monkeypatch):
    monkeypatch.setattr(launches, "SPLIT_KEYS", 128)
    packed, _ = ragged("cpu")
    splits = launches.splits_of(packed)
    assert (splits.most, splits.total, splits.ends.tolist()) == (6, 16, [4, 7, 13, 16])
    assert launches.splits_of(replace(packed, host_rows=None)).total == 4 * 6
    problem = Problem.of(*inputs("cpu", 1000))
    assert launches.splits_of(problem.sequences) == launches.Splits(8, 8, None)
    out, lse = launches.split_results(problem, launches.splits_of(problem.sequences))
    assert out.shape == (8, 2, 2, 128, 64)
    assert lse.shape == out.shape[:-1]
    assert not len(launches.split_results(problem, launches.Splits(1, 1, None))[0])


def test_runs_without_a_key_weigh_nothing(device):
    """The first row of a split tile has keys in the second split only, the second row in none."""
    q, k, _ = inputs(device, 256, heads=1)
    plan = by_hand(q, k, [[[[-1], [-1]]]], window=0)
    split_out = torch.ones(2, 1, 2, 128, 64, device=device)
    split_lse = torch.zeros(split_out.shape[:-1], device=device)
    split_out[0, ..., :2, :], split_lse[0, ..., :2] = 0, -math.inf
    split_out[1, ..., 1, :], split_lse[1, ..., 1] = 0, -math.inf
    with nan_poison():
        out, lse = torch.empty_like(q), torch.empty(1, 1, 256, device=device)
    launches.merge_splits_kernel[(2 * 128 // launches.MERGED_ROWS, 1, 1)](
        split_out, split_lse, out, lse, plan.sequences.table, plan.dense.view(torch.int8), None,
        out.stride()[:3], lse.stride(1), 2, 2, 128, NUM_HEADS=1, HEAD_DIM=64, SPLIT_KEYS=128,
        ROWS=launches.MERGED_ROWS, num_warps=4,
    )  # fmt: skip
    assert out[0, 0, :128].isnan().all()  # a tile that was not split
    assert (out[0, 0, 128:] == 1).all(1).tolist() == [True, False, *[True] * 126]
    assert not out[0, 0, 129].any()
    assert lse[0, 0, 128] == 0
    assert torch.isneginf(lse[0, 0, 129])
    assert torch.equal(lse[0, 0, 130:], torch.full_like(lse[0, 0, 130:], math.log(2)))


@pytest.mark.parametrize(
    ("words", "config"),
    [
        ("share their keys", preset("paper")),
        ("share their keys", preset("pooled", segment=64)),
    ],
)
def test_plans_of_another_form_are_refused(words, config):
    q, k, _ = inputs("cpu", 200)
    plan = select(q, k, config, backend="eager")
    for form in (plan_form(config), plan.form):
        assert words in hopper._form_refusal(form)


def test_a_tail_of_rows_is_refused_and_one_of_segments_accepted():
    config = SampleAttentionConfig(dense_tail=7)
    q, k, _ = inputs("cpu", 200)
    plan = select(q, k, config, backend="eager")
    assert hopper._form_refusal(plan_form(config)) is hopper._form_refusal(plan.form) is None
    assert "dense_tail 7" in hopper._form_refusal(replace(plan, dense_tail=7).form)


@pytest.mark.parametrize(
    ("words", "changes"),
    [("head dim 32", {"dim": 32}), ("float32", {"dtype": torch.float32}), ("an NVIDIA GPU", {})],
)
def test_refusals_say_what_is_accepted(words, changes):
    answer = hopper.engine.refusal(Problem.of(*inputs("cpu", 20, **changes)))
    assert words in answer
    assert "accepted" in answer


@on_hopper
def test_more_tiles_than_programs(hopper_gpu):
    q, k, v = inputs(hopper_gpu, 5000, dim=128, heads=6, kv_heads=2)
    check(q, k, v, select(q, k, CONFIGS["default"]))


@on_hopper
@pytest.mark.parametrize("kv_len", [8192, 8193, 40000])
def test_dense_tails_of_long_prompts(hopper_gpu, kv_len):
    q, k, v = inputs(hopper_gpu, 300, kv_len, dim=128, heads=4, kv_heads=2)
    check(q, k, v, select(q, k, CONFIGS["default"]))


@on_hopper
def test_offsets_beyond_two_to_the_31(hopper_gpu):
    heads, dim = 1024, 128
    kv_len = 2**31 // (heads * dim) + 1000
    wide = torch.randn(1, kv_len, heads, dim, device=hopper_gpu, dtype=torch.bfloat16)
    k = wide.transpose(1, 2)[:, -1:]
    q = torch.randn(1, 1, 300, dim, device=hopper_gpu, dtype=torch.bfloat16)
    check(q, k, k, select(q, k, CONFIGS["default"], backend="eager"))


@on_hopper
@pytest.mark.parametrize("q_len", [12000, 300])
def test_same_input_same_bits(hopper_gpu, q_len):
    q, k, v = inputs(hopper_gpu, q_len, 12000, dim=128, heads=4, kv_heads=2)
    plan = select(q, k, CONFIGS["default"])
    out, lse = attend(q, k, v, plan)
    for _ in range(10):
        again = attend(q, k, v, plan)
        assert torch.equal(again[0], out)
        assert torch.equal(again[1], lse)


@on_hopper
@pytest.mark.parametrize("kv_len", [1000, 20000])
def test_replays_in_a_graph_without_a_host_sync(hopper_gpu, kv_len):
    q, k, v = inputs(hopper_gpu, 1000, kv_len, dim=128, heads=4, kv_heads=2)
    plan = select(q, k, CONFIGS["default"])
    problem = Problem.of(q, k, v)
    run = partial(hopper.engine.attend, q, k, v, problem, plan, problem.scale(None))
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            out, lse = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    q.copy_(q.flip(2))
    for _ in range(2):
        graph.replay()
        assert_matches_oracle(out, lse, q, k, v, plan)
