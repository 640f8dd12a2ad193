"""The two published rules: one selection for all rows of a call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from .checks import check_count
from .parts import Check, default_check
from .rule import Config, head


@dataclass(frozen=True, kw_only=True, eq=False)
class PaperConfig(Config):
    """The rule of arXiv 2406.15486v1: columns chosen by rows at equal distances, and a window.

    Attributes:
        coverage: share of the sampled mass that the columns hold, in (0, 1] (the paper's alpha).
        sample_stride: one query row in every `sample_stride` is sampled (1 / r_row).
        window_ratio: window as a share of the key length, rounded up (r_w).
        dense_tail: last rows of the call that attend to every key (the bottom area).
        check: rows on which the retained mass is measured, and the least that a head may have.

    Raises:
        InvalidConfig: a value is outside its range.

    Source: sections 3 and 4.
    """

    NAME: ClassVar[str] = "paper"
    HEAD: ClassVar[tuple[str, ...]] = head(NAME)

    coverage: float = 0.95
    sample_stride: int = 20
    window_ratio: float = 0.08
    dense_tail: int = 128
    check: Check = field(default_factory=default_check)

    def __post_init__(self) -> None:
        """Check ranges; numbers of other libraries become Python's own."""
        self._check_share("coverage", "window_ratio")
        self._keep("sample_stride", check_count("sample_stride", self.sample_stride, 1))
        self._keep("dense_tail", check_count("dense_tail", self.dense_tail, 0))
        self._check_part("check", (Check,))
        self._write()


@dataclass(frozen=True, kw_only=True, eq=False)
class MlsysConfig(Config):
    """The rule of the MLSys 2025 version (v3): blocks of columns and of slashes, united.

    Attributes:
        coverage: share of the sampled mass that the blocks of columns hold, in (0, 1] (alpha_c).
        slash_coverage: share that the slashes hold, blocks at a constant distance (alpha_s).
        chunks: the last 128 rows of each of this many equal chunks of the call are sampled.
        key_block: keys are kept in aligned blocks of this many, by as many query rows.
        check: rows on which the retained mass is measured, and the least that a head may have.

    Raises:
        InvalidConfig: a value is outside its range.
    """

    NAME: ClassVar[str] = "mlsys"
    HEAD: ClassVar[tuple[str, ...]] = head(NAME)

    coverage: float = 0.95
    slash_coverage: float = 0.95
    chunks: int = 2
    key_block: int = 128
    check: Check = field(default_factory=default_check)

    def __post_init__(self) -> None:
        """Check ranges; numbers of other libraries become Python's own."""
        self._check_share("coverage", "slash_coverage")
        self._keep("chunks", check_count("chunks", self.chunks, 1))
        self._keep("key_block", check_count("key_block", self.key_block, 1))
        self._check_part("check", (Check,))
        self._write()

    @property
    def dense(self) -> bool:
        """Whether the thresholds ask for all of the mass, so that nothing can be dropped."""
        return self.coverage == self.slash_coverage == 1
