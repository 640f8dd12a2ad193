"""Writes the table of the tuned configurations that ship with the package."""

from __future__ import annotations

from pathlib import Path

from sample_attention import SampleAttentionConfig, Tuned
from sample_attention.config import tuned
from sample_attention.lab.records import RecordTable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "tune.md"
START, END = "<!-- shipped:start -->", "<!-- shipped:end -->"
FIELDS = ("coverage", "sample_stride", "sampled_keys", "farthest_rows", "window")
HEADERS = ("name", "keys", *FIELDS, "density", "cost", "KL", "at most", "retained mass")


def tables() -> dict[Path, str]:
    """The page that holds the table between markers, with its text as it should be."""
    head, _, rest = PAGE.read_text("utf-8").partition(START)
    return {PAGE: f"{head}{START}\n{shipped().markdown()}\n{END}{rest.partition(END)[2]}"}


def shipped() -> RecordTable:
    """Each interval of each file, with what it gave on passages that were not searched on."""
    lines: list[tuple[str, ...]] = []
    for path in sorted(tuned.SHIPPED.glob("*.json")):
        found = Tuned.load(f"tuned:{path.stem}")
        for interval, row in zip(found.intervals, found.measured, strict=True):
            facts = row["validated"]
            lines.append((
                f"`tuned:{path.stem}`", f"{interval.min_kv_len:,} and more",
                *(str(_field(interval.config, name)) for name in FIELDS),
                *(f"{facts[name]:.3f}" for name in ("density", "cost")),
                *(f"{facts[name]:.4f}" for name in ("kl", "kl_bound")),
                f"{facts['retained_mass']:.3f}",
            ))  # fmt: skip
    return RecordTable("Tuned configurations that ship", HEADERS, tuple(lines))


def _field(config: SampleAttentionConfig, name: str) -> object:
    return getattr(config if name in config.FIELDS else config.ranking, name)
