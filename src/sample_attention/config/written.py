"""Frozen values that keep their JSON text.

The text is made once, with the value: equality and hash need no other look at the fields, and
torch.compile reads one text where it would trace every number. Code in this file runs within
graphs of torch 2.7 and newer, which trace neither the json module nor writing to `__dict__`.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class Written:
    """A value that is equal to another of its kind if their JSON texts are.

    Attributes:
        FIELDS: names of the fields, in the order of the text: those of the class as it is written.
        HEAD: pairs of name and value, in JSON, that the text has before the fields.
    """

    FIELDS: ClassVar[tuple[str, ...]]
    HEAD: ClassVar[tuple[str, ...]] = ()
    _json: str

    def __init_subclass__(cls) -> None:
        """Take the names from the annotations, so that no field is left out of the text."""
        kinds = inspect.get_annotations(cls).items()
        names = tuple(name for name, kind in kinds if not str(kind).startswith("ClassVar"))
        cls.FIELDS = names  # pyright: ignore[reportConstantRedefinition]  # here it is set

    def to_json(self) -> str:
        """All fields as one JSON object; `from_json` gives an equal value."""
        return self._json

    def __eq__(self, other: object) -> bool:
        """Whether the other is of the same kind and has the same fields."""
        if self is other:
            return True
        return type(self) is type(other) and self._json == other._json  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    def __hash__(self) -> int:
        """Of the text, which Python keeps."""
        return hash(self._json)

    def _keep(self, name: str, value: object) -> None:
        """Set a field of a frozen value while it is made."""
        object.__setattr__(self, name, value)

    def _write(self) -> None:
        """Make the text, at the end of `__post_init__`."""
        pairs = [f'"{name}": {_literal(getattr(self, name))}' for name in self.FIELDS]
        object.__setattr__(self, "_json", "{" + ", ".join([*self.HEAD, *pairs]) + "}")


def _literal(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, Written):
        return value.to_json()
    if isinstance(value, tuple):
        return "[" + ", ".join([_literal(part) for part in value]) + "]"  # pyright: ignore[reportUnknownVariableType]
    return str(value) if isinstance(value, int) else repr(value)
