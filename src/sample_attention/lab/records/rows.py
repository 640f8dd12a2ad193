"""Rows as they are read back: checked by the form of their command, the last of each measurement.

A file may hold a measurement twice, since commands append: the last row counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InvalidInput
from .lines import Kinds, check_fields, read_lines

Record = dict[str, Any]
"""A row as it is read back: fields that another version wrote may be missing."""


@dataclass(frozen=True)
class Form:
    """The form of the rows that a command appends.

    Attributes:
        name: of such a row, as errors state it.
        kinds: the fields that a row needs, by those fields that tell its kind.
        optional: fields that may be missing or null.
        identity: fields that are equal in two rows of the same measurement.
    """

    name: str
    kinds: Mapping[tuple[str, ...], Kinds]
    optional: Kinds
    identity: tuple[str, ...]

    def check(self, where: str, row: object) -> Record:
        """The row, when it has this form.

        Args:
            where: its file and line, for the error.
            row: read from a line.

        Raises:
            InvalidInput: it is of no kind of this form, or not whole.
        """
        record: Any = row
        kinds = [x for x in self.kinds if isinstance(row, dict) and record.keys() >= {*x}]
        if not kinds:
            raise InvalidInput(f"{where} is not {self.name}")
        for kind in kinds:
            check_fields(where, record, self.kinds[kind], self.optional)
        return record

    def identity_of(self, row: Mapping[str, object]) -> str:
        """A text that is the same for rows of the same measurement."""
        return json.dumps([row.get(name) for name in self.identity], sort_keys=True)


def read_rows(paths: Iterable[Path], form: Form) -> list[Record]:
    """The rows of files of JSON lines; of the same measurement the last one.

    Raises:
        InvalidInput: a line has not this form.
        OSError: a file cannot be read.
    """
    latest: dict[str, Record] = {}
    for where, row in read_lines(paths):
        record = form.check(where, row)
        latest[form.identity_of(record)] = record
    return list(latest.values())


def machine_of(record: Record) -> str:
    """Device, its threads where it is a CPU, and the version of torch."""
    device = str(record.get("device", "unknown device"))
    threads = "" if device.startswith("NVIDIA") else f", {record.get('threads')} threads"
    return f"{device}{threads}, torch {record.get('torch', '?')}"
