"""One way to prefill: dense attention, ours at any setting, or another sparse method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...config import (
    PREFIX,
    PRESETS,
    SUFFIX,
    Config,
    MlsysConfig,
    SampleAttentionConfig,
    Tuned,
    preset,
    with_fields,
)
from ...errors import InvalidConfig
from ...integrations.recording import Recorder
from ...integrations.transformers import sample_attention_prefill
from ...methods import METHODS, Method
from .dense import attention_problem, dense_attention, dense_providers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DENSE = "dense"
TUNED = PREFIX.rstrip(":")
"""The method whose setting is the name or the file of a tuned configuration."""

DENSITY = "density"
"""The setting that is no field: turn the method until it computes this share of the pairs."""

LEAST_DIAL = 1e-3

WIDEST_TURN = 8
"""Octaves by which what a tuned configuration may lose is turned at most, both ways."""


@dataclass(frozen=True)
class Contender:
    """One way to prefill.

    Attributes:
        name: as records state it.
        setting: what differs from the named setting, such as `coverage=0.9`; empty: nothing. Of
            `tuned` the name of the configuration.
        config: how keys are selected: ours, or a baseline; None: dense attention.
        density: that the method is to be turned to, for each length and task; None: it follows
            from the configuration.
    """

    name: str
    setting: str = ""
    config: Config | Tuned | Method | None = None
    density: float | None = None

    @property
    def label(self) -> str:
        """Name and setting, as `parse_method` reads it."""
        return f"{self.name}:{self.setting}" if self.setting else self.name

    @property
    def recorded(self) -> dict[str, Any] | None:
        """All fields of the configuration, of a tuned one its digest; None for dense attention."""
        if isinstance(self.config, Tuned):
            digest = hashlib.sha256(self.config.to_json().encode()).hexdigest()
            return {"tuned_for": self.config.model, "sha256": digest}
        if isinstance(self.config, Config):
            return self.config.to_values()
        config: Any = self.config  # baselines are dataclasses, which their base does not say
        return None if config is None else asdict(config)

    def measuring(self, held_out_rows: int) -> Contender:
        """Ours with rows held out on which retained mass is measured; 0: as it is."""
        if not held_out_rows or self.config is None or isinstance(self.config, Method):
            return self
        if isinstance(self.config, Tuned):
            return replace(self, config=self.config.with_fields({"held_out_rows": held_out_rows}))
        return replace(self, config=with_fields(self.config, held_out_rows=held_out_rows))

    def turned(self, dial: float, length: int) -> Contender:
        """The method at a point of its range for a length: from 0, the sparsest, to 1, dense."""
        if self.config is None:
            return self
        if isinstance(self.config, Tuned):
            losing = 2.0 ** (WIDEST_TURN * (1 - 2 * dial))
            return replace(self, config=self.config.losing(losing))
        if isinstance(self.config, Method):
            return replace(self, config=self.config.turned(dial, length))
        coverage = max(dial, LEAST_DIAL)
        values: dict[str, Any] = {"coverage": coverage}
        if isinstance(self.config, SampleAttentionConfig):
            values["heads"] = None
        elif isinstance(self.config, MlsysConfig):
            values["slash_coverage"] = coverage
        return replace(self, config=with_fields(self.config, **values))

    @contextmanager
    def attending(
        self, model: PreTrainedModel, token_ids: Tensor, *, routed: bool
    ) -> Generator[Recorder]:
        """Let a model prefill one prompt by this method inside a `with` block.

        Dense attention on a GPU is that of the fastest provider, on a CPU the model's own.

        Args:
            model: a causal language model.
            token_ids: the prompt, int64 `[1, S]`.
            routed: short prompts run dense, as the policy decides; else all run sparse.

        Yields:
            The recorder, without entries for dense attention.
        """
        if self.config is not None:
            policy = "auto" if routed else "sparse"
            with sample_attention_prefill(
                model, self.config, policy=policy, record=True
            ) as recorder:
                yield recorder
        elif model.device.type == "cpu":
            yield Recorder(active=False)
        else:
            provider = dense_providers((), attention_problem(model, token_ids))[0]
            with dense_attention(model, provider):
                yield Recorder(active=False)


def parse_methods(texts: Sequence[str]) -> list[Contender]:
    """Each method once, dense attention first: all others are compared with it.

    Raises:
        InvalidConfig: see `parse_method`.
    """
    return list(dict.fromkeys([Contender(DENSE), *map(parse_method, texts)]))


def parse_method(text: str) -> Contender:
    """The method of `NAME`, `NAME:KEY=VALUE,KEY=VALUE`, `tuned:FILE` or `tuned:FILE,density=VALUE`.

    KEY is a field, or `density`; FILE a tuned configuration, by its name or its path.

    Raises:
        InvalidConfig: there is no such method or setting.
    """
    name, _, setting = text.partition(":")
    if name == DENSE:
        if setting:
            raise InvalidConfig(f"method {text}: dense attention has no settings")
        return Contender(DENSE)
    source, *parts = setting.split(",") if name == TUNED else ("", *setting.split(","))
    given = dict(_assignment(text, part) for part in parts if part)
    canonical = [f"{key}={_shown(value)}" for key, value in sorted(given.items())]
    density = given.pop(DENSITY, None)
    if density is not None and not (isinstance(density, float) and 0 < density < 1):
        raise InvalidConfig(f"method {text}: density must be a number between 0 and 1")
    if name != TUNED:
        return Contender(name, ",".join(canonical), _config(name, given), density)
    if given:
        raise InvalidConfig(f"method {text}: the only setting of a tuned configuration is density")
    tuned = Tuned.load(source if source.endswith(SUFFIX) else PREFIX + source)
    return Contender(TUNED, ",".join([source, *canonical]), tuned, density)


def _config(name: str, fields: dict[str, Any]) -> Config | Method:
    if name not in METHODS:
        if name not in PRESETS:
            raise InvalidConfig(
                f"there is no method '{name}'; accepted: "
                f"{', '.join((DENSE, *PRESETS, *METHODS))}, {PREFIX}FILE"
            )
        return preset(name, **fields)
    published: Any = METHODS[name]
    try:
        return replace(published, **fields)
    except TypeError as error:
        accepted = ", ".join(asdict(published))
        raise InvalidConfig(f"{name}: {error}; its settings are {accepted}") from error


def _assignment(text: str, part: str) -> tuple[str, Any]:
    key, separator, value = part.partition("=")
    try:
        parsed = json.loads("null" if value == "none" else value)
    except ValueError:
        separator = ""
        parsed = None
    if not separator:
        raise InvalidConfig(
            f"method {text}: write NAME:KEY=VALUE,KEY=VALUE, a value being a number, true, false "
            f"or none; '{part}' is not that"
        )
    return key.strip(), parsed


def _shown(value: object) -> str:
    return "none" if value is None else json.dumps(value)
