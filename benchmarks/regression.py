"""Whether this source tree is slower than another commit: both in one run, in turns.

    python benchmarks/regression.py [--against COMMIT] [--turns 5] [--limit RATIO] [--json]

Checks the commit out into a temporary worktree and measures it and the tree that is here, as it
lies on the disk, in alternating processes: whole calls on the CPU, or on a GPU, where there is one,
selection, attention and whole calls. Each result is checked against the reference before it is
timed. Prints a table in Markdown. The limit of a case is the largest ratio that one tree shows
against itself within this run. Exits with 1 when a case is beyond its limit, and with 2 when
nothing was compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from turns import HERE, ROWS, kept_mass, named_rule, planted, replayed, run_child

if TYPE_CHECKING:
    from torch import Tensor

    from sample_attention import StripePlan

CASES = {
    "cpu": [
        ((8, 2, 64), 4096, "default"),
        ((8, 2, 64), 8192, "default"),
        ((8, 2, 64), 8192, "fast"),
    ],
    "cuda": [((12, 2, 128), 32_768, "default"), ((32, 8, 128), 32_768, "default")],
}
"""Query heads, key heads and head dim; queries and keys; preset. The first on a CPU runs dense."""
SEEN = ("ran", "density", "kept")
REPEATS = {"cpu": 3, "cuda": 12}
Inputs = tuple["Tensor", "Tensor", "Tensor"]


def main() -> int:
    """Compare this tree with a commit; 1 when it is slower."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", help="a commit; default: where this branch left main")
    parser.add_argument("--turns", type=int, default=5, help="processes for each tree")
    parser.add_argument("--limit", type=float, help="of every case, in place of its spread")
    parser.add_argument("--length", type=int, help="queries and keys of every case")
    parser.add_argument("--json", action="store_true", help="print rows in place of the table")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        measure(given.length)
        return 0
    if given.turns < 2:
        refuse(f"--turns {given.turns}: a spread takes at least 2 turns of each tree")
    if given.limit is not None and given.limit <= 0:
        refuse(f"--limit {given.limit}: a ratio of times is positive, as 1.1 for a tenth slower")
    with checked_out(given.against or git("merge-base", "HEAD", "main")) as (tree, commit):
        sides = {"here": str(HERE), "against": tree}
        rows = alternate(sides, given.turns, given.length)
    compared = [compare(name, sides, given.limit) for name, sides in rows.items()]
    text = json.dumps({"against": commit, "rows": compared}, indent=1) if given.json else None
    sys.stdout.write((text or table(compared, commit)) + "\n")
    return int(any(row["slower"] for row in compared))


def refuse(message: str) -> NoReturn:
    """End with 2: nothing was compared."""
    sys.stderr.write(f"regression.py: {message}\n")
    raise SystemExit(2)


def git(*arguments: str) -> str:
    """Standard output of a git command in this tree."""
    done = subprocess.run(
        ["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False
    )
    if done.returncode:
        refuse(
            f"`git {' '.join(arguments)}` failed: {done.stderr.strip()}; run it in a clone that "
            "has the commit (`git fetch`), and name the commit with --against"
        )
    return done.stdout.strip()


@contextmanager
def checked_out(name: str) -> Iterator[tuple[str, str]]:
    """A temporary worktree of a commit, and the short name of the commit."""
    commit = git("rev-parse", "--short", "--verify", f"{name}^{{commit}}")
    with tempfile.TemporaryDirectory() as folder:
        tree = str(Path(folder) / commit)
        git("worktree", "add", "--quiet", "--detach", tree, commit)
        try:
            yield tree, commit
        finally:
            git("worktree", "remove", "--force", tree)


def alternate(
    sides: dict[str, str], turns: int, length: int | None
) -> dict[str, dict[str, list[dict]]]:
    """Rows by case and side; every second turn begins with the other side."""
    arguments = ["--child", *(["--length", str(length)] if length else [])]
    rows: dict[str, dict[str, list[dict]]] = {}
    for turn in range(turns):
        for side, tree in list(sides.items())[:: -1 if turn % 2 else 1]:
            try:
                lines = run_child(__file__, tree, *arguments).splitlines()
            except subprocess.CalledProcessError as error:
                refuse(f"the process of `{side}` ({tree}) ended with {error.returncode}, see above")
            for row in map(json.loads, lines):
                rows.setdefault(row["case"], {}).setdefault(side, []).append(row)
    return rows


def compare(case: str, sides: dict[str, list[dict]], limit: float | None) -> dict[str, Any]:
    """One row of the table: medians over the turns, their ratio and its limit."""
    times = {side: [row["ms"] for row in rows] for side, rows in sides.items()}
    ms = {side: statistics.median(x) for side, x in times.items()}
    spread = {side: max(x) / min(x) for side, x in times.items()}
    first = {side: rows[0] for side, rows in sides.items()}
    ratio, allowed = ms["here"] / ms["against"], limit or max(spread.values())
    row = {
        "case": case,
        "ms": ms,
        "ratio": ratio,
        "spread": spread,
        "limit": allowed,
        "slower": ratio > allowed,
        "same_bits": len({row["hash"] for rows in sides.values() for row in rows}) == 1,
    }
    return row | {key: {side: x[key] for side, x in first.items()} for key in SEEN}


def table(rows: list[dict[str, Any]], commit: str) -> str:
    """All rows for people, in Markdown."""
    lines = [
        f"| case | here, ms | {commit}, ms | ratio | limit | spread of turns | results |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        ms, spread = row["ms"], row["spread"]
        ratio = f"{row['ratio']:.3f}{' **slower**' if row['slower'] else ''}"
        results = "same bits" if row["same_bits"] else "; ".join(
            f"{key} {row[key]['here']}, was {row[key]['against']}" for key in SEEN
        )  # fmt: skip
        lines.append(
            f"| {row['case']} | {ms['here']:.3f} | {ms['against']:.3f} | {ratio} "
            f"| {row['limit']:.3f} | {spread['here']:.3f}, {spread['against']:.3f} | {results} |"
        )
    return "\n".join(lines)


def measure(length: int | None) -> None:
    """Print a line of JSON for each case and part: median milliseconds of checked results."""
    import torch

    import sample_attention as sa

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for shape, keys, name in dict.fromkeys((s, length or n, name) for s, n, name in CASES[device]):
        q, k, v = qkv = tuple(planted(shape, keys, device, dtype))
        rule = named_rule(name)
        plan = sa.select(q, k, rule)
        seen = {"density": f"{float(plan.density().mean()):.4f}"}
        seen["kept"] = f"{kept_mass(q, k, plan):.4f}"
        out, lse = sa.attend(q, k, v, plan)
        check(out, lse, qkv, plan)
        whole = sa.sample_attention(q, k, v, rule)
        seen["ran"] = check(whole, None, qkv, plan)
        seen["hash"] = digest(torch.cat([x.flatten().float() for x in (out, lse, whole)]))
        calls: dict[str, float] = {}
        if device == "cuda":
            calls["select"] = replayed(lambda q=q, k=k, rule=rule: sa.select(q, k, rule))
            calls["attend"] = replayed(lambda x=qkv, plan=plan: sa.attend(*x, plan))
        calls["call"] = waited(lambda x=qkv, rule=rule: sa.sample_attention(*x, rule), device)
        for part, ms in calls.items():
            case = f"{name}, {shape[0]}/{shape[1]} heads, {keys} keys, {part}"
            sys.stdout.write(json.dumps({"case": case, "ms": ms, **seen}) + "\n")


def check(out: Tensor, lse: Tensor | None, qkv: Inputs, plan: StripePlan) -> str:
    """Whether rows of a result are those of the plan (`sparse`) or of every key (`dense`).

    Raises:
        SystemExit: of neither, within the computed error budget of the reference.
    """
    import torch

    from sample_attention.testing import assert_matches_mask

    q, k, v = qkv
    rows = torch.linspace(0, q.shape[2] - 1, ROWS, device=q.device).long().unique()
    keys = torch.arange(k.shape[2], device=q.device)
    heads = torch.tensor([0, q.shape[1] - 1], device=q.device)
    at, kv_heads = (heads[:, None], rows[None]), heads // (q.shape[1] // k.shape[1])
    sparse = torch.stack([plan.allows(0, h, rows, keys) for h in heads.tolist()])
    masks = {"sparse": sparse, "dense": (keys <= rows[:, None]).expand_as(sparse)}
    errors = []
    for ran, mask in masks.items() if lse is None else [("sparse", sparse)]:
        try:
            assert_matches_mask(
                out[0][at], None if lse is None else lse[0][at],
                (q[0][at], k[0][kv_heads], v[0][kv_heads]), mask, name=ran,
            )  # fmt: skip
        except AssertionError as error:
            errors.append(str(error))
        else:
            return ran
    raise SystemExit("wrong on the inputs to be measured: " + "; ".join(errors))


def digest(x: Tensor) -> str:
    """A hash of the bits of a tensor of fp32."""
    return hashlib.sha256(x.cpu().numpy().tobytes()).hexdigest()[:16]


def waited(call: Callable[[], object], device: str) -> float:
    """Median milliseconds of a call and of the wait for its result."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(1 + REPEATS[device]):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


if __name__ == "__main__":
    raise SystemExit(main())
