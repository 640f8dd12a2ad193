"""Measurements as lines of JSON, each with where it comes from."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config import config_from_json
from ..config.schema import OLD_FIELDS
from ..errors import InvalidConfig, InvalidInput

if TYPE_CHECKING:
    import os


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
        """The facts of this process.

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

    def as_row(self) -> dict[str, str | int | None]:
        """The facts as part of a record."""
        return asdict(self)


def append_record(path: str | os.PathLike[str], row: Mapping[str, object]) -> None:
    """Append one record to a file of JSON lines; the file and its folder are made if needed.

    The line is written at once, so that a killed run leaves whole records.

    Raises:
        InvalidInput: the row holds what JSON has no form for, such as a tensor or NaN.
    """
    try:
        line = json.dumps(dict(row), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a record must hold plain finite values: {error}") from error
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_lines(paths: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    """What the lines of JSON-lines files hold, each with where it stands (`file:line`).

    Raises:
        InvalidInput: a line is not JSON, or not UTF-8.
        OSError: a file cannot be read.
    """
    for path in paths:
        # At "\n" alone: texts may hold other characters that Python takes for ends of lines.
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line.strip():
                where = f"{path}:{number}"
                try:
                    yield where, json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    raise InvalidInput(f"{where} is not JSON: {error}") from error


Kinds = Mapping[str, tuple[type, ...]]
"""Of fields by name: the types that are accepted."""


def check_fields(where: str, row: Mapping[str, Any], needed: Kinds, optional: Kinds) -> None:
    """Check what a record holds before anything is made of it.

    Args:
        where: its file and line, for the error.
        row: the record.
        needed: what it must hold.
        optional: what may be missing or null.

    Raises:
        InvalidInput: a field is missing, or of another type.
    """
    for name, kinds in {**optional, **needed}.items():
        value = row.get(name)
        if value is None and name not in needed:
            continue
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            accepted = " or ".join(kind.__name__ for kind in kinds)
            raise InvalidInput(
                f"{where}: the field {name} is {str(value)[:60]!r}; accepted: {accepted}"
            )


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


def config_of(row: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The configuration of a row as it is written today, if it has all 22 fields of version 0.1.

    Rows with fewer were measured before some field existed; they stay as they are, as do
    configurations of other methods.
    """
    given = row.get("config")
    if not isinstance(given, dict) or {*given} != {*OLD_FIELDS}:
        return given
    try:
        return config_from_json(json.dumps(given)).to_values()
    except InvalidConfig:  # that no rule has any more
        return given


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True,
            check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
