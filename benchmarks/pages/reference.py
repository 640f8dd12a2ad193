"""Writes the generated tables of docs/reference: fields, commands and support.

python benchmarks/pages/reference.py            write them
python benchmarks/pages/reference.py --check    write nothing; exit 1 when one is not up to date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import reference_cli
import reference_config
import reference_support

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
MAKERS: dict[str, Callable[[], str]] = {
    "cli": reference_cli.commands,
    "configuration": reference_config.fields,
    "support": reference_support.matrix,
}


def tables() -> dict[Path, str]:
    """Each page that holds a table between markers, with its text as it should be."""
    return {REFERENCE / f"{name}.md": _filled(name, make()) for name, make in MAKERS.items()}


def _filled(name: str, table: str) -> str:
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    head, _, rest = (REFERENCE / f"{name}.md").read_text("utf-8").partition(start)
    return f"{head}{start}\n{table}\n{end}{rest.partition(end)[2]}"


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    stale = {p: text for p, text in tables().items() if p.read_text("utf-8") != text}
    for page, text in stale.items():
        sys.stderr.write(f"{page.name}: the table is not that of the code\n")
        if not check:
            page.write_text(text, "utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
