"""What the three rules that engines carry out have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from ..errors import InvalidConfig
from .checks import check_share
from .parts import RANKINGS, Budget, Check
from .schema import SCHEMA, content_of
from .written import Written

T = TypeVar("T", bound="Config")


class Config(Written):
    """A rule by which the engines select; its kinds are frozen dataclasses.

    Attributes:
        NAME: of the rule, in JSON.
    """

    NAME: ClassVar[str]
    coverage: float
    check: Check

    @property
    def dense(self) -> bool:
        """Whether the thresholds ask for all of the mass, so that nothing can be dropped."""
        return self.coverage == 1

    def for_layer(self: T, layer: int, layers: int) -> T:
        """The rule in one layer of a model of so many: here the same in all."""
        del layer, layers
        return self

    def to_values(self) -> dict[str, Any]:
        """All fields as plain values, as `to_json` writes and records keep them."""
        return json.loads(self.to_json())

    @classmethod
    def from_json(cls: type[T], text: str) -> T:
        """The rule that `to_json` wrote; fields that are left out have their defaults.

        Texts of version 0.1 are read as well.

        Raises:
            InvalidConfig: not a JSON object, another rule, unknown fields, a value out of range, or
                fields of version 0.1 that together are no rule any more.
        """
        name, content = content_of(text)
        if name != cls.NAME:
            raise InvalidConfig(f"the text holds the rule {name!r}; accepted: {cls.NAME!r}")
        return cls.from_content(content)

    @classmethod
    def from_content(cls: type[T], content: Mapping[str, Any]) -> T:
        """The rule of a JSON object of schema 2 without `schema` and `rule`.

        Raises:
            InvalidConfig: as `from_json`.
        """
        _check_names(f"the rule {cls.NAME!r}", content, cls.FIELDS)
        return cls(**{name: _value(name, value) for name, value in content.items()})

    def _check_share(self, *names: str) -> None:
        for name in names:
            self._keep(name, check_share(name, getattr(self, name)))

    def _check_part(self, name: str, kinds: tuple[type[Written], ...]) -> None:
        if not isinstance(getattr(self, name), kinds):
            names = ", ".join([kind.__name__ for kind in kinds])
            raise InvalidConfig(f"{name} must be of {names}; got {getattr(self, name)!r}")


def head(name: str) -> tuple[str, ...]:
    """The beginning of the text of a rule of that name."""
    return f'"schema": {SCHEMA}', f'"rule": "{name}"'


def _value(name: str, value: object) -> object:
    """A field as it is given to a rule: an object becomes a part."""
    if name not in ("ranking", "budget", "check"):
        return value
    if not isinstance(value, dict):
        raise InvalidConfig(f"{name} must be an object, got {value!r}")
    content: dict[str, Any] = {**value}
    kind: type[Written]
    if name == "ranking":
        kinds = {ranking.KIND: ranking for ranking in RANKINGS}
        given = content.pop("kind", None)
        if given not in kinds:
            raise InvalidConfig(f"ranking of kind {given!r}; accepted: {', '.join(kinds)}")
        kind = kinds[given]
    else:
        kind = Budget if name == "budget" else Check
    _check_names(name, content, kind.FIELDS)
    return kind(**content)


def _check_names(what: str, content: Mapping[str, Any], accepted: tuple[str, ...]) -> None:
    unknown = sorted({*content} - {*accepted})
    if unknown:
        raise InvalidConfig(
            f"{what} has unknown fields {', '.join(unknown)}; accepted: {', '.join(accepted)}"
        )
