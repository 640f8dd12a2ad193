"""Reads the records of evaluations and writes the part of the documentation that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sample_attention.lab.eval.groups import label_of, turned_to
from sample_attention.lab.eval.plots import draw_accuracy, draw_needles
from sample_attention.lab.eval.tables import evaluation_tables, skipped_notes
from sample_attention.lab.records import EVAL, Record, RecordTable, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
RECORDS = DOCS.parent / "benchmarks" / "records"
PAGE = DOCS / "evaluation.md"
NO_ROWS = "Nothing is recorded yet."
START, END = "<!-- evaluation:start -->", "<!-- evaluation:end -->"


def draw_needles_as_published(rows: list[Record]) -> Figure | None:
    """Needle maps of methods at their settings, without those turned to a density."""
    return draw_needles([row for row in rows if not turned_to(label_of(row))])


PICTURES = {"eval_accuracy.png": draw_accuracy, "eval_needles.png": draw_needles_as_published}
CAPTIONS = {
    "eval_accuracy.png": "Score of each method against its density",
    "eval_needles.png": "Right answers by length of the prompt and depth of the needle",
}


def read_evaluation() -> list[Record]:
    """The rows of all evaluations; a young checkout may have none."""
    return read_rows(sorted(RECORDS.glob("eval_*.jsonl")), EVAL)


def results(rows: list[Record], pictures: list[str]) -> str:
    """Rows as Markdown: pictures, tables, what was left out, and where all of it comes from."""
    if not rows:
        return NO_ROWS
    parts = [f"![{CAPTIONS[name]}](figures/{name})" for name in pictures]
    parts += [shown(table) for table in evaluation_tables(rows)]
    if notes := skipped_notes(rows):
        parts.append("\n".join(["Left out:", "", *(f"- {note}" for note in notes)]))
    commits = dict.fromkeys(str(row.get("commit") or "unknown")[:10] for row in rows)
    parts.append(f"Commits: {', '.join(commits)}; records: `benchmarks/records/eval_*.jsonl`.")
    return "\n\n".join(parts)


def shown(table: RecordTable) -> str:
    """A table as Markdown; those of every task are folded."""
    text = table.markdown()
    if not table.title.startswith("Every task"):
        return text
    body = text.partition("\n\n")[2]
    return f'<details markdown="1"><summary>{table.title}</summary>\n\n{body}\n\n</details>'


def tables() -> dict[Path, str]:
    """The page that holds results between markers, with its text as it should be."""
    rows = read_evaluation()
    pictures = [name for name, draw in PICTURES.items() if rows and draw(rows) is not None]
    head, _, rest = PAGE.read_text("utf-8").partition(START)
    return {PAGE: f"{head}{START}\n{results(rows, pictures)}\n{END}{rest.partition(END)[2]}"}
