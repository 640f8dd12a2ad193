"""The command `sample-attention`: parse, call the package, print.

Every error that the package raises on purpose, and every file that cannot be read or written, is
one line on stderr and exit code 2; Ctrl-C is exit code 130.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .._extras import require
from ..errors import SampleAttentionError

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows the program's name; None: those of the process.

    Returns:
        The exit code.
    """
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, as in `| head`, has seen enough
        sys.stderr.close()
        return 0
    except SampleAttentionError as error:
        return _complain(str(error))
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        return _complain(f"{error.filename}: {error.strerror}" if named else str(error))


def _dispatch(arguments: Sequence[str] | None) -> int:
    # The extra with all that a command can use: with `cli` alone most would ask for the next one.
    typer = require("typer", "demo")
    require("rich", "demo")
    from .app import app

    # The base of every complaint about the command line; older typers take it from click.
    (usage_error,) = typer.BadParameter.__bases__
    try:
        result = app(arguments, prog_name="sample-attention", standalone_mode=False)
    except usage_error as error:
        if not error.format_message():  # no arguments at all: the help is printed
            return BAD_INPUT
        return _complain(f"{error.format_message()} (see sample-attention --help)")
    except typer.Abort:
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT
