"""The command ``queuestream``: stream the demo model, or anything importable, or serve it.

``demo`` and ``run`` stream to a terminal: each run goes by twice, once through ``for`` and once
through ``async for`` (``--iterate`` picks one).  ``serve`` makes an HTTP server of it.

Exit codes: 0 done, the reader of the output left early, or a server was told to stop; 1 the run
raised; 2 wrong arguments, nothing was started; 130 a run was stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import sys
from typing import TYPE_CHECKING

from queuestream.cli._ends import DONE, STOPPED, WRONG_ARGUMENTS, UsageError, complain, leave
from queuestream.cli._serve import add_serve
from queuestream.cli._stream import OutputClosedError, add_demo, add_run

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit code, as listed in the module's docstring.

    Raises:
        SystemExit: By argparse, for ``--help``, ``--version`` and arguments it cannot parse;
            and whatever ``SystemExit`` the run itself raised.
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model says more than a terminal can show
    try:
        code: int = arguments.command(arguments)
        return code
    except UsageError as error:
        complain(f"{error}")
        return WRONG_ARGUMENTS
    except OutputClosedError:
        # What is still buffered would fail again when the interpreter flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return leave(DONE)
    except KeyboardInterrupt:
        return leave(STOPPED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="queuestream",
        description="Iterate the tokens of any LangChain runnable with for and async for.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"%(prog)s {_version()}",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_demo(commands)
    add_run(commands)
    add_serve(commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("queuestream")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "(not installed)"
