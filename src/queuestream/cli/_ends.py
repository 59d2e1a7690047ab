"""What all commands have in common: how they end, and what they say of it."""

from __future__ import annotations

import os
import sys
import threading
import time

__all__ = [
    "DONE",
    "RUN_FAILED",
    "STOPPED",
    "WRONG_ARGUMENTS",
    "UsageError",
    "complain",
    "leave",
    "say",
]

DONE = 0
RUN_FAILED = 1
WRONG_ARGUMENTS = 2
STOPPED = 130


class UsageError(Exception):
    """The arguments cannot work; nothing was started."""


def complain(message: str) -> None:
    sys.stderr.write(f"queuestream: {message}\n")


def say(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name


def leave(code: int) -> int:
    """Return `code`, or end the process with it if a thread of the run would keep it alive.

    The run was told to stop; a model that waits for its server inside somebody's pool will
    hear of that only when the server answers, and the interpreter would wait for it.
    """
    deadline = time.monotonic() + 0.2
    for thread in threading.enumerate():
        if thread.daemon or thread is threading.main_thread():
            continue
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code
