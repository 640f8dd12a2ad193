"""Where results go: rows to a file and to stdout, tables to stdout, and the files they need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..errors import InvalidInput
from ..lab.records import RecordTable, Row, append_record
from .options import Json, Records

WIDEST = 1000
"""Columns of a table that is not cut off, whatever the terminal: more than any takes."""


@dataclass(frozen=True)
class Destination:
    """Where measured rows go.

    Attributes:
        output: JSON lines that they are appended to; None: no file.
        as_json: print them as JSON lines on stdout, and nothing else there.
    """

    output: Records = None
    as_json: Json = False

    def keep(self, row: Row) -> None:
        """Append a row to the file and print it, as far as either is asked for."""
        if self.output is not None:
            append_record(self.output, row)
        if self.as_json:
            print(json.dumps(row), flush=True)


def print_tables(tables: Sequence[RecordTable]) -> None:
    """Print tables on stdout, never cut off."""
    for table in tables:
        shown = Table(title=table.title, title_justify="left", title_style="bold")
        for i, header in enumerate(table.headers):
            shown.add_column(header, justify="right" if i else "left", no_wrap=True)
        for line in table.lines:
            shown.add_row(*line)
        width = Console(width=WIDEST).measure(shown).maximum
        Console(highlight=False, markup=False, width=width).print(shown)


def prepare_file(path: Path | None) -> None:
    """Make the folder of a file that is written after minutes of work; fail now if it cannot be.

    Raises:
        InvalidInput: the path is a folder.
        OSError: its folder cannot be made or written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise InvalidInput(f"--output {path}: this is a folder; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.exists()
    path.open("ab").close()
    if not known:
        path.unlink()
