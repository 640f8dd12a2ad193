"""How keys are selected: a preset, its coverage and other fields, as commands take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .options import Assignments, Coverage, PresetOrTuned
from .setup import build_config, build_rule

if TYPE_CHECKING:
    from ..config import SampleAttentionConfig, Tuned

# typer evaluates these annotations at run time, on Python 3.10 too, hence Optional.

Presets = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--preset", help="default, fast, pooled, paper, mlsys or tuned:NAME; may be repeated"
    ),
]
Coverages = Annotated[
    Optional[list[float]],  # noqa: UP045
    typer.Option("--coverage", help="share of the attention to keep, in (0, 1]; may be repeated"),
]


@dataclass(frozen=True)
class RuleOptions:
    """One rule.

    Attributes:
        preset: its name, or that of a tuned configuration.
        coverage: in the place of the preset's.
        config: other fields, as `KEY=VALUE`.
    """

    preset: PresetOrTuned = "default"
    coverage: Coverage = None
    config: Assignments = None

    def rule(self, held_out: int = 0) -> SampleAttentionConfig | Tuned:
        """See `build_rule`."""
        return build_rule(self.preset, self.coverage, self.config, held_out)


@dataclass(frozen=True)
class SeveralRules:
    """Every preset at every coverage; without any of either the default, and the preset's own.

    Attributes:
        preset: names.
        coverage: in the place of the presets'.
        config: other fields of all, as `KEY=VALUE`.
    """

    preset: Presets = None
    coverage: Coverages = None
    config: Assignments = None

    def configs(self) -> tuple[tuple[str, SampleAttentionConfig], ...]:
        """The rules with the names of their presets; tuned ones are refused."""
        return tuple((x, build_config(x, y, self.config)) for x, y in self._crossed())

    def rules(self) -> tuple[tuple[str, SampleAttentionConfig | Tuned], ...]:
        """The rules with the names of their presets, tuned ones among them."""
        return tuple((x, build_rule(x, y, self.config)) for x, y in self._crossed())

    def _crossed(self) -> list[tuple[str, float | None]]:
        return [(x, y) for x in self.preset or ["default"] for y in self.coverage or [None]]
