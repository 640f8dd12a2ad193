"""Configurations tuned for one model: which holds from which length on, and what was measured.

A file is one JSON object::

    {"schema": 2, "model": "smollm2-135m",
     "intervals": [{"min_kv_len": 0, "config": {...}, "heads": [[0.5, 0.94, ...], ...]},
                   {"min_kv_len": 8192, "config": {...}}],
     "measured": [...], "provenance": {...}}

Files of schema 1, of version 0.1, are read as well: `heads` was `head_coverage` there, and
configurations had no schema of their own.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import InvalidConfig
from .checks import check_count
from .presets import with_fields
from .sample_attention import SampleAttentionConfig

TUNED_SCHEMA = 2
"""Version of the file format that is written."""

TABLES = {1: "head_coverage", 2: "heads"}
"""Versions that are read, with the field that holds an interval's table."""

PREFIX = "tuned:"
"""Before the name of a file that ships with the package."""

LEAST_LOST, MOST_LOST = 1e-3, 1 - 1e-3
"""Bounds of what a head may lose where all are turned together."""

SUFFIX = ".json"
SHIPPED = Path(__file__).parent / "data"
_NEEDED = {"schema", "model", "intervals"}
_ACCEPTED = {*_NEEDED, "measured", "provenance"}
_LIST_OF_NUMBERS = re.compile(r"\[[-+.\deE,\s]+\]")
"""Written in one line: a table has hundreds."""


@dataclass(frozen=True)
class Interval:
    """A configuration and where it begins to hold.

    Attributes:
        min_kv_len: least keys of a call; it holds up to the next interval.
        config: how keys are selected there.
        heads: `Budget.heads` of the configuration for each layer, by layer; None: every head has
            the `coverage` of the configuration.

    Raises:
        InvalidConfig: the length is no count, or a layer has coverages that no configuration takes.
    """

    min_kv_len: int
    config: SampleAttentionConfig
    heads: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        """Check the length and the table."""
        length = check_count("min_kv_len", self.min_kv_len, 0)
        object.__setattr__(self, "min_kv_len", length)
        if not isinstance(self.config, SampleAttentionConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidConfig(f"config must be a SampleAttentionConfig, got {self.config!r}")
        layers = len(self.heads or ())
        for layer in range(layers):
            self.for_layer(layer, layers)

    def for_layer(self, layer: int, layers: int) -> Interval:
        """The same with the coverages of one layer, of so many, in the configuration.

        Raises:
            InvalidConfig: the table is for another number of layers, or has no such layer.
        """
        table = self.heads
        if table is None:
            return replace(self, config=self.config.for_layer(layer, layers))
        if layers != len(table) or not 0 <= layer < layers:
            raise InvalidConfig(
                f"heads is for {len(table)} layers, and was asked for layer {layer} of {layers}"
            )
        return replace(self, config=with_fields(self.config, heads=table[layer]), heads=None)

    def losing(self, times: float) -> Interval:
        """The same with what every head may lose that many times as large; none is dense."""

        def turned(coverage: float) -> float:
            return 1 - min(max((1 - coverage) * times, LEAST_LOST), MOST_LOST)

        config = replace(self.config, coverage=turned(self.config.coverage))
        table = self.heads and tuple(tuple(map(turned, row)) for row in self.heads)
        return replace(self, config=config, heads=table)


@dataclass(frozen=True)
class Tuned:
    """What `sample-attention tune` found for a model.

    A model's layers each have their own coverage of every head (`for_layer`); a call that does not
    say its layer has one coverage for all heads, at about the same density.

    Attributes:
        model: that was profiled.
        intervals: by rising length, the first from 0.
        measured: what was measured of each configuration, as plain values.
        provenance: where the measurements come from, as plain values.

    Raises:
        InvalidConfig: the intervals do not start at 0 or do not rise.
    """

    model: str
    intervals: tuple[Interval, ...]
    measured: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    def __post_init__(self) -> None:
        """Check that every length has one configuration."""
        starts = [interval.min_kv_len for interval in self.intervals]
        if starts[:1] != [0] or any(a >= b for a, b in pairwise(starts)):
            raise InvalidConfig(
                f"min_kv_len of the intervals is {starts}; accepted: 0, then rising lengths"
            )

    def for_length(self, kv_len: int) -> SampleAttentionConfig:
        """The configuration for a call whose longest sequence has `kv_len` keys."""
        return [x.config for x in self.intervals if x.min_kv_len <= kv_len][-1]

    def for_layer(self, layer: int, layers: int) -> Tuned:
        """The configurations for one layer, of so many, with the coverage of each of its heads.

        Raises:
            InvalidConfig: the model has another number of layers, or no such layer.
        """
        if (layer, layers) not in self._layers:
            try:
                intervals = tuple(x.for_layer(layer, layers) for x in self.intervals)
            except InvalidConfig as error:
                raise InvalidConfig(
                    f"the configuration tuned for '{self.model}' is of no use in another model: "
                    f"{error}; run '{self.model}', or tune this model (sample-attention tune)"
                ) from error
            self._layers[layer, layers] = replace(self, intervals=intervals)
        return self._layers[layer, layers]

    @functools.cached_property
    def _layers(self) -> dict[tuple[int, int], Tuned]:
        return {}

    def with_fields(self, values: Mapping[str, Any]) -> Tuned:
        """The same with these fields of every configuration replaced.

        Another coverage is that of all heads.

        Raises:
            InvalidConfig: a value is out of range.
        """
        kept = {"heads": None} if {"coverage", "heads"} & {*values} else {}
        changed = [
            replace(x, config=with_fields(x.config, **values), **kept) for x in self.intervals
        ]
        return replace(self, intervals=tuple(changed))

    def losing(self, times: float) -> Tuned:
        """The same with what every head may lose, one minus its coverage, that many times as large.

        Where the error of a head grows with the square of what it loses, and its columns with the
        logarithm, this is the best table at every density if it is at one.
        """
        return replace(self, intervals=tuple(interval.losing(times) for interval in self.intervals))

    def to_json(self) -> str:
        """The text of a file; `from_json` gives an equal value."""
        content = {
            "schema": TUNED_SCHEMA, "model": self.model,
            "intervals": [_content(interval) for interval in self.intervals],
            "measured": [dict(row) for row in self.measured], "provenance": dict(self.provenance),
        }  # fmt: skip
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        return _LIST_OF_NUMBERS.sub(lambda found: " ".join(found[0].split()), text)

    @classmethod
    def from_json(cls, text: str) -> Tuned:
        """What `to_json` wrote.

        Raises:
            InvalidConfig: not JSON, another schema, an unknown or missing field, a bad value.
        """
        try:
            content = json.loads(text)
        except (TypeError, ValueError) as error:
            raise InvalidConfig(f"not JSON: {error}") from error
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema not in TABLES:
            raise InvalidConfig(
                f"a tuned configuration of schema {schema!r}; accepted: "
                f"{', '.join(map(str, TABLES))}; write it again with sample-attention tune"
            )
        _check_fields("a tuned configuration", content, _NEEDED, _ACCEPTED)
        measured, provenance = content.get("measured", []), content.get("provenance", {})
        for name, kind in (("model", str), ("intervals", list)):
            if not isinstance(content[name], kind):
                raise InvalidConfig(f"{name} must be a {kind.__name__}, got {content[name]!r}")
        if not isinstance(measured, list) or not isinstance(provenance, dict):
            raise InvalidConfig("measured must be a list and provenance an object")
        intervals = tuple(_interval(x, TABLES[schema]) for x in content["intervals"])
        return cls(content["model"], intervals, tuple(measured), provenance)

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Tuned:
        """Read a file by its path, or by name one that ships with the package.

        Args:
            source: a path, or `tuned:NAME`.

        Raises:
            InvalidConfig: there is no such file, or it holds something else.
        """
        if not isinstance(source, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidConfig(f"a path or {PREFIX}NAME is accepted, got {source!r}")
        text = os.fspath(source)
        if text.startswith(PREFIX):
            return _shipped(text.removeprefix(PREFIX))
        return _read(Path(text).expanduser())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; its folder is made if needed.

        Raises:
            OSError: it cannot be written.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.to_json(), "utf-8")


def names_tuned(text: str) -> bool:
    """Whether a text stands for a tuned configuration: `tuned:NAME` or the path of a JSON file."""
    return text.startswith(PREFIX) or text.endswith(SUFFIX)


@functools.cache
def _shipped(name: str) -> Tuned:
    known = sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}"))
    if name not in known:
        names = ", ".join(PREFIX + x for x in known) or "none, since this version ships none"
        raise InvalidConfig(
            f"there is no tuned configuration '{PREFIX}{name}'; accepted: {names}; or the path of "
            f"a {SUFFIX} file that sample-attention tune wrote"
        )
    return _read(SHIPPED / f"{name}{SUFFIX}")


def _read(path: Path) -> Tuned:
    try:
        return Tuned.from_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidConfig(
            f"cannot read the tuned configuration {path}: {reason}; check the path, or write it "
            "with sample-attention tune"
        ) from error
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: {error}") from error


def _content(interval: Interval) -> dict[str, Any]:
    """An interval as plain values, without a table that it does not have."""
    content = {"min_kv_len": interval.min_kv_len, "config": json.loads(interval.config.to_json())}
    table = interval.heads
    return content if table is None else {**content, TABLES[TUNED_SCHEMA]: table}


def _interval(given: object, table_name: str) -> Interval:
    if not isinstance(given, dict):
        raise InvalidConfig(f"an interval must be an object, got {given!r}")
    content: dict[str, Any] = given
    needed = {"min_kv_len", "config"}
    _check_fields("an interval", content, needed, {*needed, table_name})
    config = SampleAttentionConfig.from_json(json.dumps(content["config"]))
    table = content.get(table_name)
    if table is None:
        return Interval(content["min_kv_len"], config)
    if not isinstance(table, list) or not all(isinstance(row, list) for row in table):
        raise InvalidConfig(f"{table_name} of an interval must be a list by layer, got {table!r}")
    return Interval(content["min_kv_len"], config, tuple(map(tuple, table)))


def _check_fields(
    what: str, given: Mapping[str, Any], needed: set[str], accepted: set[str]
) -> None:
    for problem, names in (("lacks", needed - set(given)), ("has unknown", set(given) - accepted)):
        if names:
            raise InvalidConfig(
                f"{what} {problem} fields: {', '.join(sorted(names))}; accepted: "
                f"{', '.join(sorted(accepted))}"
            )
