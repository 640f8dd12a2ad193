"""Where a measurement comes from: commit, versions, machine, seed."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .lines import Row

PACKAGE = Path(__file__).resolve().parents[2]
"""The folder that `sample_attention` is imported from."""

PACKAGES = (
    "sample-attention", "torch", "triton", "transformers", "fa3-fwd", "flash-attn-4", "flash-attn",
    "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip
"""Distributions whose version can change a time."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What has to be the same for a measurement to come out the same.

    Attributes:
        date: when it was made, UTC, ISO 8601 to the second.
        commit: of the checkout that this package runs from, with `-dirty` after it when files
            differ from that commit; None when the package was installed.
        sample_attention: version of this package.
        python: version.
        torch: version.
        transformers: version; None when not installed.
        device: name of the GPU or CPU.
        threads: of torch on the CPU.
        seed: of what was random; None when nothing was.
    """

    date: str
    commit: str | None
    sample_attention: str
    python: str
    torch: str
    transformers: str | None
    device: str
    threads: int
    seed: int | None = None

    @classmethod
    def collect(cls, device: torch.device | str = "cpu", seed: int | None = None) -> Provenance:
        """The provenance of what this process measures.

        Args:
            device: where the measurement is made.
            seed: of what is random in it.
        """
        return cls(
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            commit=commit_of_checkout(),
            sample_attention=str(vars(sys.modules["sample_attention"]).get("__version__")),
            python=platform.python_version(),
            torch=torch.__version__,
            transformers=installed_version("transformers"),
            device=device_name(torch.device(device)),
            threads=torch.get_num_threads(),
            seed=seed,
        )

    def as_row(self) -> Row:
        """The fields of a record that state it."""
        return asdict(self)


def origin(device: torch.device, seed: int) -> Row:
    """The provenance of rows measured in this process, with `gpu` and `versions`."""
    provenance = Provenance.collect(device, seed=seed)
    installed = {name: installed_version(name) for name in PACKAGES}
    return {
        **provenance.as_row(),
        "gpu": provenance.device if device.type == "cuda" else None,
        "versions": {
            **{name: version for name, version in installed.items() if version is not None},
            "sample-attention": provenance.sample_attention,
            "torch": provenance.torch,
        },
    }


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, without importing it; None when it is missing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the CPU as the system states it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit_of_checkout() -> str | None:
    """The commit of the git checkout that this package lies in; None when it was installed."""
    # An installed package may lie inside the checkout of somebody else, which does not track it.
    if not _git("ls-files", "__init__.py"):
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=PACKAGE, capture_output=True, text=True,
            check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
