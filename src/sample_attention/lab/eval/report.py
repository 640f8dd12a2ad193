"""A folder that shows rows: tables and pictures on one HTML page, pictures as PNG files too."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from ..pictures import save_figure
from ..records import Record, RecordTable
from .plots import draw_accuracy, draw_needles
from .tables import evaluation_tables, skipped_notes

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}caption{text-align:left;font-weight:600}"
    "th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}img{max-width:100%}"
)


def write_evaluation(rows: Sequence[Record], folder: Path) -> list[Path]:
    """Write `accuracy.png` and `needles.png` where there is something to draw, and `report.html`.

    Returns:
        The files.

    Raises:
        MissingExtra: matplotlib is not installed.
        OSError: the folder cannot be written to.
    """
    drawn = {"accuracy.png": draw_accuracy(rows), "needles.png": draw_needles(rows)}
    paths: list[Path] = []
    for name, figure in drawn.items():
        if figure is not None:
            save_figure(figure, folder / name)
            paths.append(folder / name)
    page = folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(_page(rows, [path.name for path in paths]), "utf-8")
    return [*paths, page]


def _page(rows: Sequence[Record], pictures: Sequence[str]) -> str:
    parts = [f'<p><img src="{name}" alt="{name.partition(".")[0]}"></p>' for name in pictures]
    parts += [_table(table) for table in evaluation_tables(rows)]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in skipped_notes(rows))
    parts += [f"<h2>Left out</h2><ul>{notes}</ul>"] if notes else []
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title>'
        f"<style>{STYLE}</style><h1>Evaluation</h1>{''.join(parts)}</html>\n"
    )


def _table(table: RecordTable) -> str:
    head = _line(table.headers, "th")
    body = "".join(_line(line, "td") for line in table.lines)
    return f"<table><caption>{html.escape(table.title)}</caption>{head}{body}</table>"


def _line(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
