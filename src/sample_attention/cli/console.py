"""Signs of progress, all of them on stderr: steps, and bars that follow the layers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

REFRESHES_PER_SECOND = 4
"""Low: drawing the bar must not take time from what is measured."""


def messages() -> Console:
    """The console of messages for people: stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def step(description: str, *, quiet: bool = False) -> Generator[None]:
    """Show that something of unknown length goes on, unless `quiet`."""
    with _progress(quiet=quiet) as progress:
        task = progress.add_task(description, total=None)
        yield
        progress.update(task, total=1, completed=1)


@contextmanager
def counted(
    description: str, total: int | None, *, quiet: bool = False
) -> Generator[Callable[[str], None]]:
    """A bar for `total` pieces of work (None: unknown), not shown when `quiet`.

    Yields:
        What to call after every piece, with a word on it.
    """
    with _progress(quiet=quiet) as progress:
        task = progress.add_task(description, total=total)

        def advance(done: str) -> None:
            progress.update(task, description=f"{description}: {done}", advance=1)

        yield advance


@contextmanager
def layer_bar(
    model: nn.Module, description: str, new_tokens: int = 0
) -> Generator[Callable[[], None]]:
    """Bars for one prefill, a step per layer, and for the tokens after it.

    Yields:
        What to call after every new token.
    """
    layers = list(_layers(model))
    with _progress() as progress:
        task = progress.add_task(description, total=len(layers))

        def advance(*_: object) -> None:
            progress.advance(task)

        hooks = [layer.register_forward_hook(advance) for layer in layers]
        writing = progress.add_task("  writing", total=new_tokens, visible=new_tokens > 0)

        def count_token() -> None:
            while hooks:  # the prefill is over
                hooks.pop().remove()
            progress.advance(writing)

        try:
            yield count_token
        finally:
            while hooks:
                hooks.pop().remove()
            progress.update(task, completed=len(layers))
            if new_tokens:
                progress.update(writing, total=progress.tasks[-1].completed)


def _progress(*, quiet: bool = False) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    return Progress(
        *columns, console=messages(), disable=quiet, refresh_per_second=REFRESHES_PER_SECOND
    )


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """One module for each layer: the first that states the layer's index."""
    seen: set[int] = set()
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and index not in seen:
            seen.add(index)
            yield module
