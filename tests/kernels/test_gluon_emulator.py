"""Small Gluon kernels compile for Hopper, run in the emulator, and their broken variants do not."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="the extra `triton` is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.experimental.gluon import language as gl  # noqa: E402
from triton.experimental.gluon._runtime import GluonASTSource  # noqa: E402

from sample_attention.testing import assert_matches_mask, make_qkv  # noqa: E402

from .gluon_emulator import (  # noqa: E402
    BarrierError,
    DeadlockError,
    EmulationError,
    IntegerOverflowError,
    OutOfBoundsError,
    RaceError,
    emulate,
)
from .gluon_kernels import (  # noqa: E402
    attention_kernel,
    copy_group_kernel,
    copy_kernel,
    fold_kernel,
    gather_kernel,
    move_kernel,
    scheduled_kernel,
    worker_tensor_kernel,
)

SEEDS = pytest.mark.parametrize("seed", range(4))
LOG2_E = 1.4426950408889634


WARP = gl.BlockedLayout([1], [32], [4], [0])


def gather(fault=None, *, n=150, block_n=32, stages=2, loader_warps=4, rows=None, **options):
    """What `gather_kernel` gives and what it should, as `(out, expected)`."""
    generator = torch.Generator().manual_seed(n)
    w = torch.randn(64, block_n, generator=generator).bfloat16()
    x = torch.randn(40, 64, generator=generator).bfloat16()
    if rows is None:
        rows = torch.randint(0, len(x), (n,), generator=generator, dtype=torch.int32)
    out = torch.full((64, 64), torch.nan)
    emulate(
        gather_kernel, (1,), w, x, rows, out, n, x.stride(0), BLOCK_M=64, BLOCK_N=block_n, D=64,
        STAGES=stages, LOADER_WARPS=loader_warps, FAULT=fault, **options,
    )  # fmt: skip
    tiles = torch.nn.functional.pad(x[rows.long()].float(), (0, 0, 0, -n % block_n))
    return out, (w.float() @ tiles.view(-1, block_n, 64)).sum(0)


@pytest.mark.parametrize("ahead", [0, 3])
def test_copy(ahead):
    x, y = torch.randn(200), torch.full((200,), torch.nan)
    emulate(copy_kernel, (2,), x, y, 200, ahead, 128, True)
    assert torch.equal(y, torch.nn.functional.pad(x[ahead:], (0, ahead)))


@pytest.mark.parametrize(("elements", "verb"), [((200, 256), "loads"), ((256, 200), "stores")])
def test_an_access_out_of_bounds_is_reported_with_its_line(elements, verb):
    x, y = (torch.zeros(n) for n in elements)
    with pytest.raises(OutOfBoundsError, match=rf"{verb} element 200 of [XY].*\n.*gl\.store"):
        emulate(copy_kernel, (2,), x, y, 200, 0, BLOCK=128, MASKED=False)


def test_int32_offsets_may_not_overflow():
    with pytest.raises(IntegerOverflowError, match="2147483650 is not an int32"):
        emulate(copy_kernel, (1,), torch.zeros(9), torch.zeros(9), 9, 2**31 - 1, 4, True)


@SEEDS
@pytest.mark.parametrize(("stages", "loader_warps"), [(2, 4), (1, 1), (4, 2), (8, 4)])
def test_pipeline(stages, loader_warps, seed):
    out, expected = gather(stages=stages, loader_warps=loader_warps, seed=seed)
    torch.testing.assert_close(out, expected)


@SEEDS
@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("consumer does not wait", RaceError, "reads shared memory that"),
        ("loader does not wait", RaceError, "copies to shared memory that"),
        ("buffer freed early", RaceError, "a wgmma in flight is yet to read"),
        ("no fence", RaceError, "fence_async_shared"),
        ("wrong phase", DeadlockError, r"(?s)wait\(full.*wait\(empty"),
        ("one arrival", BarrierError, "128 arrivals at a barrier that waits for 1 of 1"),
    ],
)  # fmt: skip
def test_broken_pipeline_is_detected(fault, error, message, seed):
    with pytest.raises(error, match=message):
        gather(fault, seed=seed)


@SEEDS
def test_rows_out_of_bounds_are_detected(seed):
    rows = torch.arange(40, dtype=torch.int32)
    rows[7] = 40
    with pytest.raises(OutOfBoundsError, match="copies element 2560 of X, which has 2560"):
        gather(n=40, rows=rows, seed=seed)


@SEEDS
@pytest.mark.parametrize(("q_len", "kv_len"), [(128, 128), (100, 171), (130, 130)], ids=str)
def test_attention(q_len, kv_len, seed):
    q, k, v = (x[0].bfloat16() for x in make_qkv(q_len, kv_len, num_heads=2, head_dim=64, seed=1))
    out = torch.full_like(q, torch.nan)
    emulate(
        attention_kernel, (-(-q_len // 128), 2), q, k, v, out, q.stride()[:2], k.stride()[:2],
        q_len, kv_len, 64**-0.5 * LOG2_E, BLOCK_M=64, BLOCK_N=32, D=64, STAGES=2,
        seed=seed,
    )  # fmt: skip
    keep = torch.ones(2, q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    assert_matches_mask(out, None, (q, k, v), keep)


def test_integers_divide_as_in_c():
    x = torch.tensor([-7, -1, 0, 7], dtype=torch.int32)
    out = torch.zeros(4, 4, dtype=torch.int32)
    emulate(fold_kernel, (1,), x, out, 2, L=WARP)
    assert out.tolist() == [[-3, 0, 0, 3], [-1, -1, 0, 1], [7, 7, 7, 7], [-1, -1, -1, -1]]


def test_division_by_zero_is_an_error():
    x, out = (torch.ones(n, dtype=torch.int32) for n in (4, 16))
    with pytest.raises(EmulationError, match="division by zero"):
        emulate(fold_kernel, (1,), x, out, 0, L=WARP)


@pytest.mark.parametrize(("wait", "counted"), [("group", False), ("barrier", True)])
def test_copies_are_there_once_waited_for(wait, counted):
    x, y = torch.randn(100), torch.full((128,), torch.nan)
    emulate(copy_group_kernel, (1,), x, y, 100, WAIT=wait, COUNTED=counted, L=WARP)
    assert torch.equal(y, torch.nn.functional.pad(x, (0, 28)))


@pytest.mark.parametrize(
    ("wait", "counted", "error", "message"),
    [
        ("none", False, RaceError, "an asynchronous copy is yet to write"),
        ("early", False, RaceError, "an asynchronous copy is yet to write"),
        ("barrier", False, RaceError, "an asynchronous copy is yet to write"),
        ("alone", False, BarrierError, "128 arrivals at a barrier that waits for 1"),
        ("alone", True, DeadlockError, "every partition waits"),
    ],
)
def test_copies_that_are_not_waited_for_are_detected(wait, counted, error, message):
    x, y = torch.randn(100), torch.zeros(128)
    with pytest.raises(error, match=message):
        emulate(copy_group_kernel, (1,), x, y, 100, WAIT=wait, COUNTED=counted, L=WARP)


def test_programs_share_a_counter():
    next_tile, taken = torch.zeros(1, dtype=torch.int32), torch.zeros(7, dtype=torch.int32)
    emulate(scheduled_kernel, (3,), next_tile, taken, 7)
    assert taken.tolist() == [1, 1, 1, 1, 1, 1, 1]
    assert next_tile.item() == 7 + 3


def test_a_worker_takes_no_tensor():
    with pytest.raises(EmulationError, match="cannot be passed to a worker"):
        emulate(worker_tensor_kernel, (1,), torch.zeros(128), L=WARP)


def test_shared_memory_is_limited():
    with pytest.raises(EmulationError, match="278528 bytes of shared memory; a block has 232448"):
        gather(block_n=128, stages=16)


def test_pointers_move_and_read_through_other_helpers():
    x, y = torch.arange(64).to(torch.int16), torch.zeros(2, dtype=torch.float64)
    emulate(move_kernel, (2,), x, y, (32, 1), None)
    assert y.tolist() == [sum(range(32)) / 2, sum(range(32, 64)) / 2]


def test_arguments_are_bound_as_in_a_call():
    with pytest.raises(TypeError, match="unexpected keyword argument 'warps'"):
        emulate(scheduled_kernel, (1,), torch.zeros(1), torch.zeros(1), 1, warps=4)


COMPILED = {
    "copy": (
        copy_kernel,
        {"X": "*fp32", "Y": "*fp32", "n": "i32", "ahead": "i32"},
        {"BLOCK": 128, "MASKED": True},
    ),
    "fold": (fold_kernel, {"X": "*i32", "Out": "*i32", "by": "i32"}, {"L": WARP}),
    "groups": (
        copy_group_kernel,
        {"X": "*fp32", "Y": "*fp32", "n": "i32"},
        {"WAIT": "group", "COUNTED": False, "L": WARP},
    ),
    "barrier": (
        copy_group_kernel,
        {"X": "*fp32", "Y": "*fp32", "n": "i32"},
        {"WAIT": "barrier", "COUNTED": True, "L": WARP},
    ),
    "scheduled": (scheduled_kernel, {"Next": "*i32", "Taken": "*i32", "tiles": "i32"}, {}),
    "move": (
        move_kernel,
        {"X": "*i16", "Out": "*fp64", "strides": ("i32", "i32")},
        {"Absent": None},
    ),
    "gather": (
        gather_kernel,
        {"W": "*bf16", "X": "*bf16", "Rows": "*i32", "Out": "*fp32", "n": "i32", "stride": "i32"},
        {"BLOCK_M": 64, "BLOCK_N": 64, "D": 64, "STAGES": 2, "LOADER_WARPS": 4, "FAULT": None},
    ),
    "attention": (
        attention_kernel,
        {
            **dict.fromkeys(("Q", "K", "V", "Out"), "*bf16"),
            **dict.fromkeys(("q_strides", "k_strides"), ("i32", "i32")),
            **{"q_len": "i32", "kv_len": "i32", "scale": "fp32"},
        },
        {"BLOCK_M": 64, "BLOCK_N": 64, "D": 64, "STAGES": 2},
    ),
}


@pytest.mark.parametrize("name", COMPILED)
def test_the_same_kernel_compiles_for_hopper(name):
    kernel, types, constants = COMPILED[name]
    names = kernel.arg_names
    constants = {**constants, "num_warps": 4} if "num_warps" in names else constants
    signature = {n: types.get(n, "constexpr") for n in names}
    aligned = [["tt.divisibility", 16]]
    attributes = {(i,): aligned for i, n in enumerate(names) if signature[n][0] == "*"}
    for i, n in enumerate(names):
        if n == "stride":
            attributes[(i,)] = aligned
        if n.endswith("strides"):
            attributes.update({(i, j): aligned for j in range(2)})
    fixed = {(names.index(n),): x for n, x in constants.items()}
    source = GluonASTSource(kernel, signature, fixed, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    if "BLOCK_M" in constants:
        assert "wgmma.mma_async" in compiled.asm["ptx"]
        assert "cp.async.mbarrier.arrive.noinc" in compiled.asm["ptx"]
