"""What a GPU reaches at most in this process: the rates that floors are stated at."""

from __future__ import annotations

from typing import Any

import torch

from ..._extras import require
from ..work import Rates
from .timing import clock_of, time_in_turns

MATMUL_SIZE = 8192
COPIED_BYTES = 2**30
EXPS_PER_CLOCK = 16
"""Exponentials that one SM of an NVIDIA GPU starts per clock, from sm_80 to sm_100."""


def measure_rates(dtype: torch.dtype, device: torch.device) -> Rates:
    """Measure a matrix product of this dtype and a copy; takes about a second.

    The clock is asked of Triton: not every torch tells it.

    Raises:
        MissingExtra: Triton is not installed.
    """
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype, device=device)
    source = torch.zeros(COPIED_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    times = time_in_turns(
        {"matmul": lambda: a @ a, "copy": lambda: target.copy_(source)},
        seconds=0.5, repeats=10, clock=clock_of(device),
    )  # fmt: skip
    driver: Any = require("triton.runtime", "triton").driver
    facts = driver.active.utils.get_device_properties(torch.cuda.current_device())
    clocks = facts["multiprocessor_count"] * facts["sm_clock_rate"] * 1000  # given in kHz
    return Rates(
        flops=2 * MATMUL_SIZE**3 / times["matmul"].p20,
        exps=float(EXPS_PER_CLOCK * clocks),
        bytes=2 * COPIED_BYTES / times["copy"].p20,
    )
