"""The commands and their options, from the functions that the Typer app holds."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import typer

from sample_attention.cli.app import app

PROGRAM = "sample-attention"
KINDS = {str: "text", int: "number", float: "number"}
OTHERS = "path"


def commands() -> str:
    """A section for every command: usage, and a table of its arguments and options."""
    return "\n\n".join(_section(path, info) for path, info in sorted(_walk((), app)))


def _walk(path: tuple[str, ...], group: typer.Typer) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The functions below a group with the words that call them."""
    if path and group.registered_callback and group.registered_callback.invoke_without_command:
        yield path, group.registered_callback.callback
    for info in group.registered_commands:
        yield (*path, str(info.name)), info.callback
    for below in group.registered_groups:
        if below.typer_instance is not None:
            name = (below.name,) if isinstance(below.name, str) else ()
            yield from _walk((*path, *name), below.typer_instance)


def _section(path: tuple[str, ...], function: Any) -> str:  # noqa: ANN401
    hints = typing.get_type_hints(function, include_extras=True)
    found = inspect.signature(function).parameters.values()
    rows = [_row(p, *typing.get_args(hints[p.name])[:2]) for p in found if _is_shown(hints[p.name])]
    names = [p.name.upper() for p in found if _is_argument(hints[p.name])]
    usage = " ".join((PROGRAM, *path, *names, "[OPTIONS]"))
    return "\n".join((
        f"## {' '.join(path)}", "", (inspect.getdoc(function) or "").partition("\n")[0], "",
        f"`{usage}`", "", "| name | takes | default | meaning |", "|---|---|---|---|", *rows,
    ))  # fmt: skip


def _is_shown(hint: object) -> bool:
    return len(typing.get_args(hint)) > 1 and hasattr(typing.get_args(hint)[1], "param_decls")


def _is_argument(hint: object) -> bool:
    return _is_shown(hint) and isinstance(typing.get_args(hint)[1], typer.models.ArgumentInfo)


def _row(p: inspect.Parameter, kind: Any, info: Any) -> str:  # noqa: ANN401
    kinds = [x for x in (typing.get_args(kind) or (kind,)) if x is not type(None)]
    several = typing.get_origin(kinds[0]) is list
    plain = typing.get_args(kinds[0])[0] if several else kinds[0]
    names, meaning = _names(p, info), str(info.help)
    takes = "" if plain is bool else info.metavar or KINDS.get(plain, OTHERS)
    takes += "" if info.min is None else f", {info.min} and more"
    takes += ", may be repeated" if several and "repeated" not in meaning else ""
    default = "needed" if p.default is p.empty else f"`{p.default}`"
    if p.default is None or plain is bool:
        default = f"`{names[0]}`" if p.default is True else ""
    shown = ", ".join(f"`{name}`" for name in names)
    return f"| {shown} | {takes} | {default} | {meaning.replace('|', chr(92) + '|')} |"


def _names(p: inspect.Parameter, info: Any) -> list[str]:  # noqa: ANN401
    if isinstance(info, typer.models.ArgumentInfo):
        return [p.name.upper()]
    first = (info.default,) if isinstance(info.default, str) else ()  # typer moves it as well
    names = (*first, *(info.param_decls or ())) or (f"--{p.name.replace('_', '-')}",)
    return [part for name in names for part in name.split("/")]
