"""Options that belong together are the fields of one dataclass, which commands take whole.

Typer knows flat parameters only. `grouped` shows it the fields of every dataclass in the place of
the parameter, and hands the command what it asked for.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer is to see it: parameters that are dataclasses as their fields.

    Args:
        command: takes keywords alone, whose order is that of the help; no two of its parameters
            and fields have the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    shown: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind: Any = hints[name]
        if not (isinstance(kind, type) and is_dataclass(kind)):
            shown.append(parameter.replace(annotation=kind))
            continue
        groups[name] = kind, [field.name for field in fields(kind)]
        shown += inspect.signature(kind).parameters.values()
        inner = get_type_hints(kind, include_extras=True)
        hints |= {field.name: inner[field.name] for field in fields(kind)}
    shown = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in shown
    ]

    @functools.wraps(command)
    def flat(**given: object) -> None:
        for name, (kind, parts) in groups.items():
            given[name] = kind(**{part: given.pop(part) for part in parts})
        command(**given)

    vars(flat)["__signature__"] = inspect.Signature(shown)
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return flat
