"""Options of one dataclass: flat for Typer, whole for the command."""

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest

typer = pytest.importorskip("typer")

from sample_attention.cli import options  # noqa: E402
from sample_attention.cli.grouping import grouped  # noqa: E402


@dataclass(frozen=True)
class Place:
    street: Annotated[str, typer.Option(help="of the house")] = "main"
    number: Annotated[int, typer.Option("--house", min=1)] = 7


def call(*arguments):
    """What a command is given."""
    given = []
    app = typer.Typer()

    @app.command()
    @grouped
    def _go(
        *,
        name: Annotated[str, typer.Argument()],
        place: Place,
        loud: Annotated[bool, typer.Option("--loud")] = False,
    ):
        given.append((name, place, loud))

    app(list(arguments), standalone_mode=False)
    return given


def test_a_group_arrives_whole():
    assert call("ann") == [("ann", Place(), False)]
    given = call("--house", "3", "ann", "--street", "side", "--loud")
    assert given == [("ann", Place("side", 3), True)]


def test_the_limits_of_a_field_are_those_of_its_option():
    (usage_error,) = typer.BadParameter.__bases__
    with pytest.raises(usage_error):  # in words that differ between releases
        call("ann", "--house", "0")


def test_fields_stand_where_their_group_stood():
    @grouped
    def command(*, first: int = 1, place: Place, last: int = 2):
        """Go."""

    shown = inspect.signature(command).parameters
    assert list(shown) == ["first", "street", "number", "last"]
    assert shown["number"].annotation == Place.__annotations__["number"]
    assert command.__doc__ == "Go."


def test_every_option_has_one_home():
    """Modules of commands import shared options; none is defined a second time."""
    from sample_attention.cli import app, bench_app, eval_app, machine, output, rules, tune_app

    shared = {name for name, kind in vars(options).items() if hasattr(kind, "__metadata__")}
    assert {"Device", "Dtype", "Json", "Threads"} <= shared
    for module in (app, bench_app, eval_app, machine, output, rules, tune_app):
        for name in shared & vars(module).keys():
            assert vars(module)[name] is vars(options)[name], f"{module.__name__}.{name}"
