"""The errors of the package: each names what was given, what is accepted and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

INSTALL: Final = "pip install '.[{extra}]' in a checkout of sample-attention"
"""What installs an extra. No package index has the package yet: once one has, change it here."""


class SampleAttentionError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidInput(SampleAttentionError, ValueError):
    """Tensors that do not form an attention problem."""


class InvalidConfig(SampleAttentionError, ValueError):
    """A configuration outside the accepted ranges, or an unknown preset."""


class PlanMismatch(SampleAttentionError, ValueError):
    """A plan that was made for another problem than the one it is used on."""


class ModelNotFound(SampleAttentionError, ValueError):
    """A model name that is neither a hub id, a folder, a GGUF file nor a pinned key."""


class PromptTooLong(SampleAttentionError, ValueError):
    """A prompt that does not fit the context of its model."""


class MissingExtra(SampleAttentionError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        """Name the `module` that is missing and the `extra` that brings it."""
        super().__init__(
            f"this needs the module '{module}', which is not installed; "
            f"run {INSTALL.format(extra=extra)}"
        )
        self.module = module
        self.extra = extra


class UnsupportedProblem(SampleAttentionError, NotImplementedError):
    """No backend, or not the one asked for, accepts the problem; lists every verdict."""

    def __init__(self, problem: str, verdicts: Mapping[str, str]) -> None:
        """Name the `problem` and, per backend, the reason for its refusal."""
        lines = "\n".join(f"  {name}: {reason}" for name, reason in verdicts.items())
        super().__init__(f"no backend accepts this problem ({problem}):\n{lines}")
        self.verdicts = dict(verdicts)


class UnsupportedAttention(SampleAttentionError, NotImplementedError):
    """A model asks for a kind of attention that cannot be computed right here."""
