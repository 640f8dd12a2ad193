#!/usr/bin/env bash
# Guess:   the interpreter of triton 3.6.0 runs with any numpy that pip puts beside it.
# Seen:    triton names no numpy at all, and with 2.4 every `for i in range(0, n)` over an argument
#          of the kernel is a TypeError; with 2.3.5 it runs.
# Matters: every attention kernel loops over a number of key tiles that is an argument. Tests in
#          the interpreter break with the date of the installation, not with a change of the code.
# triton 3.6.0, torch 2.13.0, numpy 2.3.5 and 2.4.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0
"$work/venv/bin/pip" install -q --no-deps triton==3.6.0

cat > "$work/show.py" <<'EOF'
import sys
from importlib.metadata import requires
import numpy, torch, triton
import triton.language as tl

@triton.jit
def total(x, out, n):
    s = 0.0
    for i in range(0, n):
        s += tl.load(x + i)
    tl.store(out, s)

out = torch.empty(1)
try:
    total[(1,)](torch.arange(8.0), out, 8)
    seen = f"{out.item():g}"
except Exception as error:
    seen = type(error.__cause__ or error).__name__
print("triton", triton.__version__, "numpy", numpy.__version__, "sum of 0 ... 7:", seen)
assert not any(r.startswith("numpy") and "extra" not in r for r in requires("triton") or ())
assert seen == sys.argv[1], "the behaviour has changed"
EOF

export TRITON_INTERPRET=1
"$work/venv/bin/pip" install -q numpy==2.3.5
"$work/venv/bin/python" "$work/show.py" 28
"$work/venv/bin/pip" install -q numpy==2.4.6
"$work/venv/bin/python" "$work/show.py" TypeError
