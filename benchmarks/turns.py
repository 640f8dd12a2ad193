"""Shared by the scripts that compare source trees: child processes, presets, inputs, device time.

A child runs the script of this tree while `import sample_attention` means that of another, so the
script uses public names alone, by the spelling of whichever tree it meets.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sample_attention import StripePlan

HERE = Path(__file__).resolve().parents[1]
SEED, ROWS, REPLAYS = 5, 64, 12


def run_child(script: str, tree: str, *arguments: str, site: str = "", **settings: str) -> str:
    """Standard output of a script in a process where the package is that of `tree`.

    Args:
        script: a file of this tree.
        tree: a checkout.
        arguments: of the script.
        site: a folder whose packages come first.
        settings: environment variables.
    """
    path = os.pathsep.join(filter(None, [site, str(Path(tree) / "src")]))
    command = [sys.executable, script, *arguments]
    environment = {**os.environ, "PYTHONPATH": path, **settings}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def named_rule(name: str):  # noqa: ANN201
    """The preset of that name, also in trees from before `preset` was a function."""
    import sample_attention as sa

    return sa.preset(name) if hasattr(sa, "preset") else sa.SampleAttentionConfig.preset(name)


def planted(
    shape: tuple[int, int, int], length: int, device: str, dtype: torch.dtype
) -> list[Tensor]:
    """q, k and v of one sequence with a few keys that many rows look at.

    Args:
        shape: query heads, key heads, head dim.
        length: queries and keys.
        device: of the results; the numbers are drawn on the CPU.
        dtype: of the results.
    """
    import torch

    heads, kv_heads, dim = shape
    random = torch.Generator().manual_seed(SEED)

    def normal(n: int) -> Tensor:
        return torch.randn(1, n, length, dim, generator=random)

    q, k, v = normal(heads), normal(kv_heads), normal(kv_heads)
    k[:, :, 7::97] += 2.5 * q.view(1, kv_heads, heads // kv_heads, length, dim)[:, :, 0, 7::97]
    q += 1.5 * k[:, :, 7].repeat_interleave(heads // kv_heads, 1)[:, :, None]
    return [x.to(device, dtype) for x in (q, k, v)]


def kept_mass(q: Tensor, k: Tensor, plan: StripePlan) -> float:
    """Mean share of the attention of some rows of head 0 that the plan keeps, in fp64."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randint(q.shape[2] // 2, q.shape[2], (ROWS,), generator=generator).to(q.device)
    keys = torch.arange(k.shape[2], device=q.device)
    scores = q[0, 0, rows].double() @ k[0, 0].double().T * q.shape[3] ** -0.5
    scores.masked_fill_(keys > rows[:, None], -torch.inf)
    return float((scores.softmax(-1) * plan.allows(0, 0, rows, keys)).sum(-1).mean())


def replayed(call: Callable[[], object]) -> float:
    """Median milliseconds on the device of one replay of `call` as a CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    times = []
    for _ in range(REPLAYS + 3):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last))
    del results
    return statistics.median(times[3:])
