"""A table of text, as commands print it and pages show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecordTable:
    """Cells of text, ready to print.

    Attributes:
        title: what is measured, and where.
        headers: one per column.
        lines: cells by line.
    """

    title: str
    headers: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table in Markdown; columns but the first are aligned to the right."""
        rules = ["---", *["--:"] * (len(self.headers) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.headers, rules, *self.lines)]
        return "\n".join([f"**{self.title}**", "", *lines])
