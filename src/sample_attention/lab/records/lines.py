"""Measurements as lines of JSON: written one by one, read and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InvalidInput

if TYPE_CHECKING:
    import os

Row = dict[str, object]
"""One measurement as it is written: plain values that JSON can hold."""


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
