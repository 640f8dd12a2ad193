"""Draws the pictures of the documentation and writes the tables that come from records.

    python benchmarks/pages/make.py            draw and write everything
    python benchmarks/pages/make.py --check    write nothing; exit 1 when a table is not up to date

Every mask and every curve is computed by the library; matplotlib only puts it on paper.
"""

from __future__ import annotations

import argparse
import sys

import architectures_page
import cpu_page
import evaluation_pages
import gpu_page
import method_figures
import record_figures
import reference
import tuned_table
import versions_page
from look import FIGURES, ROOT, style

README = ROOT / "README.md"
DRAWINGS = (
    method_figures.draw_masks, method_figures.draw_segment, method_figures.draw_alignment,
    record_figures.draw_speedup, record_figures.draw_gpu_speedup, record_figures.draw_evaluation,
)  # fmt: skip


def main() -> int:
    """Draw and write, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the tables")
    check = parser.parse_args().check
    gpu = {page: page.read_text("utf-8") for page in (gpu_page.PAGE, README)}
    pages = gpu_page.gpu_pages(gpu)
    makers = cpu_page, evaluation_pages, tuned_table, architectures_page, versions_page, reference
    for maker in makers:
        pages |= maker.tables()
    stale = [page for page, text in pages.items() if page.read_text("utf-8") != text]
    if check:
        sys.stderr.writelines(f"{page.name}: the table is not up to date\n" for page in stale)
        return int(bool(stale))
    style()
    FIGURES.mkdir(exist_ok=True)
    for draw in DRAWINGS:
        draw()
    for page, text in pages.items():
        page.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
