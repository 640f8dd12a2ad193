#!/usr/bin/env bash
# Guess:   a kernel that compiles for a GPU and runs in the interpreter of triton 3.6.0 also runs in
#          the interpreter of 3.9.0.
# Seen:    a load whose mask is a scalar condition & a block still compiles, but the interpreter of
#          3.9.0 refuses it: "mask has unsupported dtype".
# Matters: "this whole tile counts & these columns are inside" is how attention kernels write
#          causal and padded tiles; after an upgrade their tests fail where nothing is wrong.
# triton 3.6.0 and 3.9.0, torch 2.13.0, numpy 2.3.5
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5

cat > "$work/show.py" <<'EOF'
import os, sys
import torch, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def copy(x, out, counts, width, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(out + i, tl.load(x + i, mask=(counts > 0) & (i < width), other=0.0))

def compiled():
    types = {"x": "*fp32", "out": "*fp32", "counts": "i32", "width": "i32", "n": "constexpr"}
    target = GPUTarget("cuda", 90, 32)
    return "ptx" in triton.compile(ASTSource(copy, types, {"n": 8}), target=target).asm

def interpreted():
    out = torch.full((8,), -1.0)
    copy[(1,)](torch.arange(8.0), out, 1, 5, 8)
    return out.tolist() == [0, 1, 2, 3, 4, 0, 0, 0]

way = interpreted if os.environ["TRITON_INTERPRET"] == "1" else compiled
try:
    seen = "right" if way() else "wrong"
except Exception as error:
    seen = str(error.__cause__ or error)
print("triton", triton.__version__, f"{way.__name__}:", seen)
assert seen == sys.argv[1], "the behaviour has changed"
EOF

show() { TRITON_INTERPRET=$1 TRITON_CACHE_DIR="$work" "$work/venv/bin/python" -W ignore "$work/show.py" "$2"; }
"$work/venv/bin/pip" install -q --no-deps triton==3.6.0
show 0 "right"
show 1 "right"
"$work/venv/bin/pip" install -q --no-deps triton==3.9.0
show 0 "right"
show 1 "mask has unsupported dtype"
