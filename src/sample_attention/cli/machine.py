"""Where a command runs: device, dtype and threads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import InvalidInput
from .options import AUTO, Device, Dtype, Threads

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """Where a measurement runs.

    Attributes:
        device: `auto`, `cpu` or `cuda`.
        dtype: a key of `DTYPES`; None: the command chooses.
        threads: of torch on a CPU; None: as torch chooses.
    """

    device: Device = AUTO
    dtype: Dtype = None
    threads: Threads = None

    def prepare(self) -> tuple[torch.device, torch.dtype]:
        """Set the threads; the device and dtype to measure with, float32 on a CPU by default.

        Raises:
            InvalidInput: unknown dtype, or a device that this machine does not have.
        """
        device = torch.device(choose_device(self.device))
        chosen = self.chosen_dtype() or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        self.set_threads()
        return device, chosen

    def chosen_dtype(self) -> torch.dtype | None:
        """The dtype that is asked for; None: none is.

        Raises:
            InvalidInput: unknown dtype.
        """
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InvalidInput(f"--dtype {self.dtype}: accepted are {', '.join(DTYPES)}")
        return DTYPES.get(self.dtype or "")

    def set_threads(self) -> None:
        """Let torch use the threads that are asked for, if any are."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)


def choose_device(name: str) -> str:
    """The device of that name; `auto`: a GPU where there is one.

    Raises:
        InvalidInput: there is no such device.
    """
    present = torch.cuda.is_available()
    if name == AUTO:
        return "cuda" if present else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise InvalidInput(f"--device {name}: accepted are cpu and cuda")
    if name != "cpu" and not present:
        raise InvalidInput(f"--device {name}: torch finds no GPU here; use --device cpu")
    return name
