"""Runs `tests.promises.leaving`: a process for each program.

``python -m tests.promises.nursery NAME`` is one program, in the interpreter that was started for
it.  Without a name it reads names from its input and forks a process for each, as long as
it has one thread and no stream itself.  It says ``ended``, the exit code and the time as soon as
that process is gone.

So a situation costs a tenth of a second instead of one and a half.  The interpreter's end is its
own, but for one thing: the packages that others made are frozen.  To take apart a million
of their objects takes Python a good part of a second, and seconds on a busy machine.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import time
from importlib import import_module

OTHERS_PACKAGES = [
    "anyio",
    "janus",
    "langchain_core.callbacks",
    "langchain_core.language_models.chat_models",
    "langchain_core.runnables.config",
    "langchain_core.tracers.event_stream",
    "pytest",
    "trio",
]


def in_a_child() -> list[str]:
    """Fork a process for each line of the input; in such a process, return what it says."""
    faulthandler.register(signal.SIGALRM, chain=True)  # say where it hangs, and be killed
    for line in sys.stdin:
        seconds, *words = line.split()
        child = os.fork()
        if child == 0:
            signal.alarm(int(seconds))
            return words
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("\nended", code, time.monotonic(), flush=True)
    return []


def main() -> None:
    """Run what is asked for; nothing here may keep it alive, for this module is frozen."""
    for name in OTHERS_PACKAGES:
        import_module(name)
    gc.collect()
    gc.freeze()
    from tests.promises.leaving import execute  # noqa: PLC0415 - not frozen, so not before

    to_do = sys.argv[1:] or in_a_child()
    if to_do:
        execute(*to_do)


if __name__ == "__main__":
    main()
