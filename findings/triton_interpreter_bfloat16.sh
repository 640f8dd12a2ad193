#!/usr/bin/env bash
# Guess:   under TRITON_INTERPRET=1 a kernel gives bfloat16 results that are right to rounding, or
#          an error, if the interpreter cannot do bfloat16.
# Seen:    it keeps bfloat16 as uint16 and calculates with the bit patterns: `tl.dot` is off by
#          1e10 and `+` gives 1e38 or NaN, without a word; float32 and float16 are right. Known to the
#          authors as "not supported" (triton issue 11584).
# Matters: attention kernels are debugged in the interpreter, and models come in bfloat16.
# triton 3.6.0 and 3.9.0, torch 2.13.0, numpy 2.3.5
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5

cat > "$work/show.py" <<'EOF'
import torch, triton
import triton.language as tl

@triton.jit
def product(a, b, out, n: tl.constexpr):
    i = tl.arange(0, n)
    at = i[:, None] * n + i[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))

@triton.jit
def total(a, b, out, n: tl.constexpr):
    at = tl.arange(0, n)[:, None] * n + tl.arange(0, n)[None, :]
    tl.store(out + at, tl.load(a + at) + tl.load(b + at))

torch.manual_seed(0)
print("triton", triton.__version__)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    a, b = (torch.randn(16, 16).to(dtype) for _ in range(2))
    for kernel, right in (product, a.double() @ b.double()), (total, a.double() + b.double()):
        out = torch.empty(16, 16)
        kernel[(1,)](a, b, out, 16)
        error = (out - right).abs().max().item()
        print(f"  {kernel.fn.__name__:8} {str(dtype):15} largest {right.abs().max():.1f}, off by {error:.1e}")
        assert (error < 1e-2) == (dtype is not torch.bfloat16), "the behaviour has changed"
EOF

for version in 3.6.0 3.9.0; do
    "$work/venv/bin/pip" install -q --no-deps "triton==$version"
    TRITON_INTERPRET=1 "$work/venv/bin/python" "$work/show.py"
done
