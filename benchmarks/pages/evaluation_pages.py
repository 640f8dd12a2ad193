"""Reads the records of evaluations and writes the pages that show them, one more for each model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sample_attention.lab.eval.groups import groups_of, label_of, turned_to
from sample_attention.lab.eval.plots import draw_accuracy, draw_needles
from sample_attention.lab.eval.tables import model_tables, skipped_notes, summary_tables
from sample_attention.lab.records import EVAL, Record, RecordTable, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "records"
RESEARCH = ROOT / "docs" / "research"
PAGE = RESEARCH / "evaluation-results.md"
MODEL_PAGES = {
    "qwen2.5-coder-0.5b": RESEARCH / "evaluation-qwen-0-5b.md",
    "qwen2.5-coder-1.5b": RESEARCH / "evaluation-qwen-1-5b.md",
    "qwen2.5-coder-1.5b (YaRN 4)": RESEARCH / "evaluation-qwen-1-5b-yarn.md",
    "smollm2-135m": RESEARCH / "evaluation-smollm2.md",
}
"""Pages by the model of a group of rows; its name says whether its context is stretched."""

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


def by_model(rows: list[Record]) -> dict[str, list[Record]]:
    """The rows of each model."""
    found: dict[str, list[Record]] = {}
    for row in rows:
        (group,) = groups_of([row])
        found.setdefault(group.model, []).append(row)
    return found


def summary(rows: list[Record], pictures: list[str]) -> str:
    """The pictures, the tables that compare models or methods, and the commits, as Markdown."""
    if not rows:
        return NO_ROWS
    parts = [f"![{CAPTIONS[name]}](../figures/{name})" for name in pictures]
    return "\n\n".join([*parts, *map(shown, summary_tables(rows)), commits(rows)])


def results(rows: list[Record]) -> str:
    """The tables of one model, and the tasks that were left out, as Markdown."""
    if not rows:
        return NO_ROWS
    parts = [shown(table) for table in model_tables(rows)]
    if notes := skipped_notes(rows):
        parts.append("\n".join(["Left out:", "", *(f"- {note}" for note in notes)]))
    return "\n\n".join([*parts, commits(rows)])


def commits(rows: list[Record]) -> str:
    """Where the rows come from."""
    named = dict.fromkeys(str(row.get("commit") or "unknown")[:10] for row in rows)
    return f"Commits: {', '.join(named)}; records: `benchmarks/records/eval_*.jsonl`."


def shown(table: RecordTable) -> str:
    """A table as Markdown; those of every task are folded."""
    text = table.markdown()
    if not table.title.startswith("Every task"):
        return text
    body = text.partition("\n\n")[2]
    return f'<details markdown="1"><summary>{table.title}</summary>\n\n{body}\n\n</details>'


def tables() -> dict[Path, str]:
    """The pages that hold results between markers, with their text as it should be."""
    rows = read_evaluation()
    pictures = [name for name, draw in PICTURES.items() if rows and draw(rows) is not None]
    models = by_model(rows)
    if unknown := models.keys() - MODEL_PAGES.keys():
        raise ValueError(f"no page for {sorted(unknown)}; add one to MODEL_PAGES")
    bodies = {PAGE: summary(rows, pictures)}
    bodies |= {page: results(models.get(name, [])) for name, page in MODEL_PAGES.items()}
    return {page: _between_markers(page, body) for page, body in bodies.items()}


def _between_markers(page: Path, body: str) -> str:
    head, _, rest = page.read_text("utf-8").partition(START)
    return f"{head}{START}\n{body}\n{END}{rest.partition(END)[2]}"
