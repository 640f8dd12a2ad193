"""Every Triton kernel compiles for every supported GPU within its registers and shared memory."""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the extra `triton` is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sample_attention.backends.triton.attend import tile_shape  # noqa: E402
from sample_attention.backends.triton.attend_kernel import attend_kernel  # noqa: E402

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Most shared memory a block may take, by capability."""

STACK_BYTES = 128
"""A few spilled registers in the masked remainder are accepted; more mean a slow main loop."""

POINTERS = {
    "Q": "*bf16", "K": "*bf16", "V": "*bf16", "Out": "*bf16", "Lse": "*fp32", "Table": "*i32",
    "PageTable": "*i32", "Window": "*i32", "Indices": "*i32", "Offsets": "*i64", "Counts": "*i32",
    "Dense": "*i8",
}  # fmt: skip
INTEGERS = ("page_table_stride", "num_segments", "segment", "dense_tail", "tail_tiles")
STRIDES = {"q_strides": 3, "k_strides": 3, "v_strides": 3, "out_strides": 3, "lse_strides": 2}


@pytest.mark.parametrize("capability", SHARED_BYTES, ids=lambda c: f"sm{c}")
@pytest.mark.parametrize(
    ("head_dim", "block_m", "key_block", "page_size"),
    [(128, 128, 1, 0), (64, 128, 128, 0), (128, 128, 1, 16)],
)
def test_attend_kernel_compiles(capability, head_dim, block_m, key_block, page_size, tmp_path):
    paged = page_size > 0
    block_n, warps, stages = tile_shape(head_dim, block_m, divmod(capability, 10), paged=paged)
    constants = {
        "NUM_HEADS": 32, "GROUP": 4, "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim), "BLOCK_M": block_m, "BLOCK_N": block_n,
        "ALIGN": 128, "KEY_BLOCK": key_block, "LISTS_LEFT": key_block == 1,
        "PAGE_SIZE": page_size, **({} if paged else {"PageTable": None, "page_table_stride": None}),
    }  # fmt: skip
    source = _source(constants)
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    used = _resources(kernel.asm["cubin"], tmp_path)
    assert kernel.metadata.shared <= SHARED_BYTES[capability]
    assert used["LOCAL"] == 0
    assert used["STACK"] <= STACK_BYTES
    if capability == 90:
        assert "wgmma.mma_async" in kernel.asm["ptx"]


def _source(constants):
    names = attend_kernel.arg_names
    signature = {**POINTERS, **{name: ("i64",) * n for name, n in STRIDES.items()}}
    signature.update(dict.fromkeys(INTEGERS, "i32"))
    signature.update({"scale": "fp32", **dict.fromkeys(constants, "constexpr")})
    aligned = [["tt.divisibility", 16]]
    attributes = {(names.index(name),): aligned for name in POINTERS if name not in constants}
    for name, n in STRIDES.items():
        attributes.update({(names.index(name), i): aligned for i in range(n) if n == 3})
    return ASTSource(
        fn=attend_kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )


def _resources(cubin, folder):
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run(
        [tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
