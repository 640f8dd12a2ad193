"""Writes the page that says, for each model type of transformers, what was found with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sample_attention.lab.records import read_lines

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RECORDS = ROOT / "benchmarks" / "records" / "architectures.jsonl"
PAGE = DOCS / "reference" / "architectures.md"
START, END = "<!-- architectures:start -->", "<!-- architectures:end -->"
NO_RECORDS = "No records yet: `make zoo` makes them."

Row = dict[str, Any]
WAYS = {"switched": "`set_attn_implementation`", "constructed": "`from_config`"}
REASONS = {
    "cannot be chosen": "attention in its own code, which cannot be replaced",
    "in its own code": "attention in its own code, which cannot be replaced",
    "works on a mask of pairs": "works on a mask of pairs of tokens, which is never formed here",
    "accepts no registered": "transformers cannot construct it with a registered implementation",
    "value has head dim": "latent attention: values have another head dimension than keys",
    "bidirectional_mask_function": "asks for a mask that shows every token to every other",
    "or_masks": "asks for a mask in which some tokens see later ones, such as those of an image",
    "chunked_overlay": "attends within chunks of the prompt",
    "does not say that it is causal": "attends across to another sequence",
    "position_bias": "adds a bias of its own to the scores",
    "is_causal is False": "attends to later tokens, or across to another sequence",
    "returns no past_key_values": "has no cache of keys that could be passed on",
    "past_key_values'] (note": "has no cache of keys that could be passed on",
    "takes no position_ids": "takes no positions, so sequences cannot be packed",
    "rounding alone": "rounding alone changes the answer of eager attention",
    "requires the timm": "needs the package timm",
    "pixel_values": "needs an image",
}
"""What a part of an error says, in plain words; an error without an entry is shown as it is."""


def read_architectures(path: Path = RECORDS) -> list[Row]:
    """The latest record of each type, in alphabetical order, with `cases[case][route]`."""
    if not path.exists():
        return []
    latest = {row["type"]: row for _, row in read_lines([path])}
    for row in latest.values():
        row["cases"] = {}
        for finding in row["findings"]:
            for case, routes in finding["cases"].items():
                row["cases"].setdefault(case, {}).update(dict.fromkeys(routes, finding))
    return [latest[name] for name in sorted(latest)]


def plain(reason: str) -> str:
    """A reason in words for people, fit for a cell of a table."""
    found = next((text for part, text in REASONS.items() if part in reason), None)
    text = re.sub(r"^\w+: (\w+ \(model type [^)]*\): )?", "", reason)
    return found or re.sub(r"\s+", " ", text).replace("|", "/")[:200]


def exceptions(row: Row, verdict: str) -> dict[str, list[str]]:
    """The cases with a verdict, by reason."""
    found: dict[str, list[str]] = {}
    for case, routes in row["cases"].items():
        kept = {route: x for route, x in routes.items() if x["verdict"] == verdict}
        for route, x in kept.items():
            whole = len(kept) == len(routes)
            name = WAYS.get(case, case) + ("" if whole else f" ({route})")
            cases = found.setdefault(plain(x["reason"]), [])
            if name not in cases:
                cases.append(name)
    if not row["cases"] and row["verdict"] == verdict:
        found[plain(row["reason"])] = []
    return found


def _by_reason(rows: Iterable[Row], verdict: str, title: str) -> str:
    """A table of reasons, each with its types; with their cases where those are less than half."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        for reason, cases in exceptions(row, verdict).items():
            whole = not cases or 2 * len(cases) >= len(row["cases"]) > 2
            shown = "" if whole else f" ({', '.join(cases)})"
            groups.setdefault(reason, []).append(f"`{row['type']}`{shown}")
    if not groups:
        return "None."
    lines = [f"| {reason} | {', '.join(names)} |" for reason, names in sorted(groups.items())]
    return "\n".join([f"| {title} | model types |", "|---|---|", *lines])


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(f"`{row['type']}`" for row in rows) or "None."


KINDS: dict[str, Callable[[Row], bool]] = {
    "equal in every case": lambda r: r["verdict"] == "equal" and r["attention_calls"] > 0,
    "equal, with nothing to replace": lambda r: (
        r["verdict"] == "equal" and not r["attention_calls"]
    ),
    "refused with a reason, in some case or all": lambda r: r["verdict"] == "refused",
    "eager attention fails too, or the model cannot be built": lambda r: (
        r["verdict"] in {"eager", "not built"}
    ),
    "another answer": lambda r: r["verdict"] == "wrong",
    "another error": lambda r: r["verdict"] == "crash",
}


def body(rows: list[Row]) -> str:
    """What the record says, as Markdown."""
    if not rows:
        return NO_RECORDS
    kinds = {kind: [row for row in rows if test(row)] for kind, test in KINDS.items()}
    equal, nothing, refused, failing, wrong, crash = kinds.values()
    counts = [f"| {kind} | {len(found)} |" for kind, found in kinds.items()]
    exact = [row for row in equal if not row["sparse_calls"]]
    parts = [
        "\n".join([f"| of {len(rows)} model types | |", "|---|--:|", *counts]),
        "## Equal in every case", _names(equal),
        "No layer of these ran sparse, since all have a sliding window or cap their scores; they "
        f"are computed exactly: {_names(exact)}",
        "These have no attention that could be replaced, and run as they are: " + _names(nothing),
        "## Refused", _by_reason(refused, "refused", "reason"),
        "## Not compared", "Types that cannot be built here, or that eager attention cannot run:",
        _by_reason(failing, "not built", "cannot be built, because"),
        _by_reason([r for r in failing if r["cases"]], "eager", "eager attention fails"),
        "Single cases that eager attention has not, of types that are equal or refused in others:",
        _by_reason([r for r in rows if r not in failing], "eager", "the case is missing, because"),
    ]  # fmt: skip
    if wrong or crash:
        parts += ["## Faults", _by_reason(rows, "wrong", "another answer")]
        parts += [_by_reason(rows, "crash", "another error")]
    return "\n\n".join([*parts, provenance(rows)])


def provenance(rows: list[Row]) -> str:
    """Versions and commits of the records."""
    said = [
        " / ".join(dict.fromkeys(str(row[n]) for row in rows)) for n in ("torch", "transformers")
    ]
    commits = dict.fromkeys(str(row["commit"] or "unknown")[:10] for row in rows)
    return (
        f"torch {said[0]}, transformers {said[1]}, commit {', '.join(commits)}; records: "
        "`benchmarks/records/architectures.jsonl`."
    )


def tables() -> dict[Path, str]:
    """The page that holds the tables between markers, with its text as it should be."""
    head, _, rest = PAGE.read_text("utf-8").partition(START)
    return {PAGE: f"{head}{START}\n{body(read_architectures())}\n{END}{rest.partition(END)[2]}"}
