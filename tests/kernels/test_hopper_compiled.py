"""The Hopper kernel compiles within its registers, and its products run beside its softmax."""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the extra `triton` is not installed")
gluon = pytest.importorskip("triton.experimental.gluon._runtime", reason="this triton has no Gluon")

from triton.backends.compiler import GPUTarget  # noqa: E402

from sample_attention.attention.hopper.attend import MERGED_ROWS, SPLIT_KEYS, TILES  # noqa: E402
from sample_attention.attention.hopper.gather_kernel import gather_attend_kernel  # noqa: E402
from sample_attention.attention.hopper.merge_kernel import merge_splits_kernel  # noqa: E402

SHARED_BYTES = 227 * 1024
THREADS = 128
"""Of a role."""

STACK_BYTES = 16
"""Two or three spilled registers where a tile begins; more mean a slow main loop."""

TYPES = {
    **dict.fromkeys(("Lse", "SplitOut", "SplitLse"), "*fp32"),
    **dict.fromkeys(("Q", "K", "V", "Out"), "*bf16"),
    **dict.fromkeys(
        ("Table", "PageTable", "Window", "Indices", "Counts", "SplitEnds", "Counter"), "*i32"
    ),
    **dict.fromkeys(("q_strides", "k_strides", "v_strides", "out_strides"), ("i32",) * 3),
    "Offsets": "*i64", "Dense": "*i8", "scale": "fp32",
}  # fmt: skip
"""All others are numbers, i32."""

PAGED = {"PAGE_SIZE": 16, "PageTable": ..., "page_table_stride": ...}
CASES = {
    "64": {"HEAD_DIM": 64},
    "128": {},
    "128, pages": PAGED,
    "128, pages, wide": {**PAGED, "WIDE": True, "ALIKE": False},
    "128, pages, wide, sequences that differ": {
        **PAGED,
        "WIDE": True,
        "ALIKE": False,
        "SplitEnds": ...,
    },
}
"""Constants that differ from the usual; `...`: not constant after all."""

USUAL = {
    "NUM_KV_HEADS": 2, "GROUP": 6, "NUM_HEADS": 12, "HEAD_DIM": 128, "PAGE_SIZE": 0,
    "PageTable": None, "page_table_stride": None, "WIDE": False, "ALIKE": True,
    "SPLIT_KEYS": SPLIT_KEYS, "SplitEnds": None, "ROWS": MERGED_ROWS,
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=str)
def compiled(request, tmp_path_factory):
    constants = {**USUAL, **CASES[request.param]}
    constants.update(TILES[constants["HEAD_DIM"]])
    folder = tmp_path_factory.mktemp("cubin")
    return *_compile(gather_attend_kernel, constants, folder), request.param


def test_fits(compiled):
    kernel, path, _ = compiled
    used = _resources(path)
    assert kernel.metadata.shared <= SHARED_BYTES
    assert used["LOCAL"] == 0
    assert used["STACK"] <= STACK_BYTES


@pytest.mark.parametrize("head_dim", TILES)
@pytest.mark.parametrize("ends", [None, ...], ids=["alike", "sequences that differ"])
def test_merging_takes_neither_shared_memory_nor_stack(head_dim, ends, tmp_path):
    constants = {**USUAL, "HEAD_DIM": head_dim, "SplitEnds": ends}
    kernel, path = _compile(merge_splits_kernel, constants, tmp_path)
    assert kernel.metadata.shared == 0
    assert _resources(path) == {"STACK": 0, "LOCAL": 0}
    assert "LDG.E.128" in _cuobjdump("-sass", path)


def test_rows_are_copied_sixteen_bytes_at_a_time(compiled):
    copies = re.findall(r"LDGSTS\.\S*", _cuobjdump("-sass", compiled[1]))
    head_dim = 64 if "64" in compiled[2] else 128
    rows = 128 + 2 * TILES[head_dim]["BLOCK_N"]  # of queries, keys and values
    assert len(copies) >= rows * head_dim // 8 // THREADS
    assert all("128" in x for x in copies)


def test_both_products_are_in_flight_while_the_first_is_awaited(compiled):
    text = _cuobjdump("-sass", compiled[1])
    events = re.findall(r"DEPBAR\.LE gsb0, 0x[01]|HGMMA", text)
    order = "".join({"0": "w", "1": "o"}.get(x[-1], "p") for x in events)
    assert len(re.findall(r"p+ow", order)) == 4  # two roles, with and without a mask


def test_sums_are_rescaled_only_behind_a_branch(compiled):
    """A step has no more multiplications in a row than what a branch can jump over."""
    text = _cuobjdump("-sass", compiled[1])
    ops = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?\s*(\w+)", text, re.MULTILINE)
    runs = re.findall(r"(?:BRA )?(?:FMUL ){24,}", " ".join(ops) + " ")
    assert len(runs) >= 4
    assert sum(run.startswith("BRA") for run in runs) >= 4


def _compile(kernel, constants, folder):
    """A kernel for sm_90 and the path of its binary."""
    source, target = _source(kernel, constants), GPUTarget("cuda", 90, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 4})
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    return compiled, path


def _resources(path):
    report = _cuobjdump("--dump-resource-usage", path)
    return {name: int(value) for name, value in re.findall(r"(STACK|LOCAL):(\d+)", report)}


def _source(kernel, constants):
    names = kernel.arg_names
    fixed = {n: constants[n] for n in names if constants.get(n, ...) is not ...}
    signature = {n: "constexpr" if n in fixed else TYPES.get(n, "i32") for n in names}
    aligned = [["tt.divisibility", 16]]
    attributes = {(i,): aligned for i, n in enumerate(names) if signature[n][0] == "*"}
    for i, n in enumerate(names):
        if n.endswith("_strides"):
            attributes.update({(i, j): aligned for j in range(3)})
    constexprs = {(names.index(n),): x for n, x in fixed.items()}
    return gluon.GluonASTSource(kernel, signature, constexprs, attributes)


def _cuobjdump(option, path):
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout
