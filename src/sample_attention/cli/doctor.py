"""`sample-attention doctor`: the environment, and what would run here."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..api import explain
from ..config import PRESETS
from ..dense import provider
from ..errors import INSTALL, UnsupportedProblem
from ..lab.records import commit_of_checkout, device_name, installed_version
from ..problem import Problem
from ..routing.engines import choose_engines
from ..routing.policy import CROSSOVERS

EXTRAS = {
    "transformers": ("transformers", "accelerate"),
    "gguf": ("gguf", "numpy"),
    "plot": ("matplotlib",),
    "cli": ("typer", "rich"),
}
"""What the extras for users install."""

TESTED = {
    "torch": ("2.7.1", "2.14.1"),
    "transformers": ("5.17.0", "5.24.0"),
    "triton": ("3.6.0", "3.9.0"),
}
"""The oldest and newest releases that `make test-versions` tests with."""

TYPICAL = {"num_heads": 32, "num_kv_heads": 8, "tokens": 8192, "head_dim": 128}
"""The problem that backends are asked about: one layer of an 8B model on a prompt of 8K."""


def doctor(*, as_json: bool) -> None:
    """Print the facts, as JSON or for people."""
    facts = examine()
    if as_json:
        print(json.dumps(facts))
    else:
        _print_facts(facts)


def examine() -> dict[str, Any]:
    """What is here, and what would run."""
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return {
        "sample_attention": __version__,
        "commit": commit_of_checkout(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "tested": {name: _compare(name) for name in TESTED},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "extras": {
            extra: {name: installed_version(name) for name in names}
            for extra, names in EXTRAS.items()
        },
        "devices": [_examine_device(torch.device(name)) for name in devices],
        "crossovers": {kind: asdict(row) for kind, row in CROSSOVERS.items()},
    }


def _compare(name: str) -> dict[str, str | None]:
    """An installed release beside the tested ones; `position` says where it lies."""
    installed, (oldest, newest) = installed_version(name), TESTED[name]
    if installed is None:
        position = "not installed"
    elif _release(installed) < _release(oldest):
        position = "older than tested"
    elif _release(installed) > _release(newest):
        position = "newer than tested"
    else:
        position = "within the tested range"
    return {"installed": installed, "oldest": oldest, "newest": newest, "position": position}


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (2, 13, 0) of 2.13.0+cpu."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _examine_device(device: torch.device) -> dict[str, Any]:
    """What would run for the typical problem; tensors of one row, repeated, take no memory."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    row = torch.zeros(TYPICAL["head_dim"], dtype=dtype, device=device)
    q = row.expand(1, TYPICAL["num_heads"], TYPICAL["tokens"], -1)
    k = row.expand(1, TYPICAL["num_kv_heads"], TYPICAL["tokens"], -1)
    known = {"device": str(device), "name": device_name(device)}
    try:
        answer, problem = explain(q, k, k), Problem.of(q, k, k)
    except UnsupportedProblem as refusal:
        return {
            **known, "problem": str(Problem.of(q, k, k)), "backends": refusal.verdicts,
            "backend": None, "dense_provider": None, "dense_providers": {}, "sparse": False,
            "reason": "none accepts",
        }  # fmt: skip
    return {
        **known,
        "problem": answer.problem,
        "backends": answer.verdicts,
        "backend": choose_engines("auto", problem, PRESETS["default"])[1],
        "dense_provider": provider(problem),
        "dense_providers": answer.dense_verdicts,
        "sparse": answer.route.sparse,
        "reason": answer.route.reason,
    }


def _print_facts(facts: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    commit = f" ({facts['commit'][:12]})" if facts["commit"] else ""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("sample-attention", f"{facts['sample_attention']}{commit}")
    table.add_row("python", f"{facts['python']} on {facts['system']}")
    table.add_row(
        "torch", f"{facts['torch']}, {facts['threads']} threads on {facts['cores']} cores"
    )
    for name, said in facts["tested"].items():
        found = f"{said['installed']}, " if said["installed"] else ""
        tested = f"{found}{said['position']} ({said['oldest']} to {said['newest']})"
        table.add_row(f"tested {name}", tested)
    for extra, packages in facts["extras"].items():
        missing = [name for name, version in packages.items() if version is None]
        found = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        remedy = f"missing {', '.join(missing)}: {INSTALL.format(extra=extra)}"
        text = "; ".join(filter(None, (found, remedy if missing else "")))
        table.add_row(f"extra {extra}", escape(text))
    console.print(table)
    for device in facts["devices"]:
        console.print(f"\n{device['device']}: {device['name']}", style="bold")
        console.print(f"  a typical layer: {device['problem']}")
        for name, verdict in device["backends"].items():
            console.print(f"  backend {name}: {verdict}")
        runs = f"sparse, by {device['backend']}" if device["sparse"] else "not sparse"
        console.print(f"  it would run {runs} ({device['reason']})")
        if device["dense_provider"]:
            console.print(f"  dense attention is that of {device['dense_provider']}")
        for name, verdict in device["dense_providers"].items():
            console.print(f"  dense {name}: {verdict}")
    console.print()
    for kind, row in facts["crossovers"].items():
        console.print(
            f"on {kind} sparse pays from {row['min_kv_len']} keys and {row['min_q_len']} queries "
            f"up (measured: {row['measured']})",
        )  # fmt: skip
