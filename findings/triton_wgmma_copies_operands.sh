#!/usr/bin/env bash
# Guess:   a Hopper product (wgmma) that takes its left factor from registers reads them as they are.
# Seen:    Triton 3.9.0 puts one opaque "mov.b32" before it for each of these registers, so that a
#          pipelined product cannot see a later write; 3.6.0 puts none. ptxas cannot drop them all.
# Matters: flash attention takes its weights from registers, and often its queries: those need room
#          twice, and kernels that just fitted spill. Read from shared memory they need none.
# triton 3.6.0 and 3.9.0 (compiled for sm_90, no GPU needed)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cat > "$work/look.py" <<'PY'
import sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def kernel(a, b, c, n: tl.constexpr):
    i = tl.arange(0, n)
    at = i[:, None] * n + i[None, :]
    weights = tl.exp2(tl.load(a + at).to(tl.float32)).to(tl.bfloat16)
    tl.store(c + at, tl.dot(weights, tl.load(b + at)))

types = {"a": "*bf16", "b": "*bf16", "c": "*fp32", "n": "constexpr"}
source = ASTSource(fn=kernel, signature=types, constexprs={"n": 64})
made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
products = made.asm["ptx"].count("wgmma.mma_async")
copies = made.asm["llir"].count('asm sideeffect "mov.b32 $0, $1;"')
print("triton", triton.__version__, "products", products, "copies", copies)
sys.exit(not products or (copies > 0) != (triton.__version__ >= "3.9"))
PY
for release in 3.6.0 3.9.0; do
  "$work/venv/bin/pip" install -q --no-deps "triton==$release"
  "$work/venv/bin/python" -W ignore "$work/look.py" 2>/dev/null
done
