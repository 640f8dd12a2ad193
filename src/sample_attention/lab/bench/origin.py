"""What a row of measurements is, and where it comes from."""

from __future__ import annotations

import torch

from ..records import Provenance, installed_version

Row = dict[str, object]
"""One measurement: plain values that JSON can hold."""

PACKAGES = (
    "sample-attention", "torch", "triton", "transformers", "fa3-fwd", "flash-attn-4", "flash-attn",
    "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip
"""Distributions whose version can change a time."""


def origin(device: torch.device, seed: int) -> Row:
    """The provenance of rows measured in this process, with `gpu` and `versions`."""
    facts = Provenance.collect(device, seed=seed)
    found = {name: installed_version(name) for name in PACKAGES}
    return {
        **facts.as_row(),
        "gpu": facts.device if device.type == "cuda" else None,
        "versions": {
            **{name: version for name, version in found.items() if version is not None},
            "sample-attention": facts.sample_attention,
            "torch": facts.torch,
        },
    }
