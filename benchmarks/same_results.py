"""Whether another source tree computes the same, bit for bit: plans and outputs of every preset.

    python benchmarks/same_results.py --checkout DIR

Hashes what `select`, `attend` and `sample_attention` give for every preset and every tuned file,
here and in DIR, on the CPU (eager, and Triton in its interpreter) and on the GPU if there is one.
Prints a line for each case that differs; exits with 1 when one does. For changes that must change
nothing: moves, renames, other ways to the same kernels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from turns import HERE, named_rule, planted, run_child

if TYPE_CHECKING:
    from torch import Tensor

PRESETS = ("default", "fast", "pooled", "paper", "mlsys")
MODELS = {"smollm2-135m": (9, 3, 64, 30), "qwen2.5-coder-0.5b": (14, 2, 64, 24),
          "qwen2.5-coder-1.5b": (12, 2, 128, 28)}  # fmt: skip
"""Query heads, key heads, head dim and layers of the models that files are tuned for."""
LENGTHS = {"eager": (200, 3000), "interpreter": (700,), "gpu": (3000, 20000)}


def main() -> int:
    """Compare each kind of run that this machine can make; 1 when a case differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", help="the other source tree")
    parser.add_argument("--kinds", default="eager,interpreter,gpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        json.dump(dict(hashes(given.child)), sys.stdout)
        return 0
    differing = 0
    for kind in given.kinds.split(","):
        ours, theirs = (child_hashes(tree, kind) for tree in (str(HERE), given.checkout))
        wrong = [case for case in ours | theirs if ours.get(case) != theirs.get(case)]
        sys.stdout.write("".join(f"differs: {kind}, {case}\n" for case in wrong))
        sys.stdout.write(f"{kind}: {len(ours)} cases, {len(wrong)} differ\n")
        differing += len(wrong)
    return int(differing > 0)


def child_hashes(tree: str, kind: str) -> dict[str, str]:
    """The hashes of one tree, by case."""
    settings = {"TRITON_INTERPRET": "1"} if kind == "interpreter" else {}
    return json.loads(run_child(__file__, tree, "--child", kind, OMP_NUM_THREADS="2", **settings))


def hashes(kind: str) -> Iterator[tuple[str, str]]:
    """Cases and the hash of all that they give; none where a GPU is asked for and missing."""
    import torch

    import sample_attention as sa

    if kind == "gpu" and not torch.cuda.is_available():
        return
    device, dtype = ("cuda", torch.bfloat16) if kind == "gpu" else ("cpu", torch.float32)
    backends = {"eager": ("eager",), "interpreter": ("triton",), "gpu": ("triton", "hopper")}[kind]
    rules = {name: named_rule(name) for name in PRESETS}
    for name, rule in rules.items():
        for length in LENGTHS[kind]:
            qkv = planted((8, 2, 128), length, device, dtype)
            for backend in backends if name not in ("paper", "mlsys") else backends[:1]:
                yield f"{name}, {length}, {backend}", _results(qkv, rule, backend)
    for model, (heads, kv_heads, dim, layers) in MODELS.items():
        length = LENGTHS[kind][-1]
        qkv = planted((heads, kv_heads, dim), length, device, dtype)
        tuned = sa.Tuned.load(f"tuned:{model}")
        for layer in (0, layers // 2):
            rule = tuned.for_layer(layer, layers)
            for backend in backends:
                yield f"tuned:{model}, layer {layer}, {backend}", _results(qkv, rule, backend)


def _results(qkv: list[Tensor], rule: object, backend: str) -> str:
    """A hash of plan, out and lse, and of the one call that makes them all."""
    import torch

    import sample_attention as sa

    q, k, v = qkv
    plan = sa.select(q, k, rule, backend=backend)
    out, lse = sa.attend(q, k, v, plan, backend=backend)
    parts = [plan.counts, plan.dense, plan.window, out, lse]
    heads, segments = (0, q.shape[1] - 1), range(plan.counts.shape[2])
    parts += [plan.columns(0, h, g) for h in heads for g in segments]
    parts.append(sa.sample_attention(q, k, v, rule, backend=backend))
    digest = hashlib.sha256()
    for x in parts:
        digest.update(torch.cat([x.cpu().flatten()]).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    raise SystemExit(main())
