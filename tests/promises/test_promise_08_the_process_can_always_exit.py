"""Promise 8: whatever is left behind, the interpreter ends; and a fork's child can stream.

A stream that keeps the interpreter from ending can be seen only from outside of it: the
programs are in `tests.promises.leaving`.  Each is a process of its own, because how one
exits is what it is about.  Its time is that from its own last statement until the process is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.promises.leaving import (
    ENDING,
    consumers_after_the_end_of_main,
    end_late,
    fork,
    fork_and_exit_in_child,
    fork_beside_readers,
    fork_on_a_loop,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
LIMIT = 2.0  # seconds from a program's last statement until its process is gone
HANGS = 15  # seconds after which a process will not end any more

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is for Unix")


def start(*words: str) -> subprocess.Popen[str]:
    """Start a process of `tests.promises.nursery`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.promises.nursery", *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def judge(name: str, printed: str, code: int, ended: float) -> str:
    """Return what a program printed, if it ended well and in time."""
    assert code == 0, printed
    assert "Traceback" not in printed, printed
    (left,) = (line for line in printed.splitlines() if line.startswith("leaving "))
    took = ended - float(left.split()[1])
    assert took < LIMIT, f"{name} took {took:.1f} s to end"
    return printed


def leave_anew(name: str) -> str:
    """Run a program in an interpreter that was started for it."""
    with start(name) as process:
        try:
            printed, _ = process.communicate(timeout=HANGS)
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
            pytest.fail(f"{name} does not end; it said: {printed}")
        ended = time.monotonic()
    return judge(name, printed, process.returncode, ended)


class Nursery:
    """Processes that are forked from one that has imported everything and done nothing."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def leave(self, name: str, *more: str, within: int = HANGS) -> str:
        """Run a program in a process that is killed after so many seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(within, name, *more, file=self._process.stdin, flush=True)
        printed = ""
        for line in self._process.stdout:
            if line.startswith("ended "):
                _, code, ended = line.split()
                if int(code) == -signal.SIGALRM:
                    pytest.fail(f"{name} does not end; it said: {printed}")
                return judge(name, printed, int(code), float(ended))
            printed += line
        pytest.fail(f"the nursery has died; it said: {printed}")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with start() as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()


@needs_fork
@pytest.mark.parametrize("name", ENDING)
def test_the_interpreter_ends(name: str, nursery: Nursery) -> None:
    """Hazard: it joins a thread that waits for a consumer who has gone."""
    nursery.leave(name)


def test_an_interpreter_that_was_started_ends() -> None:
    """Hazard: what a fork makes anew is not as it is at first."""
    leave_anew("thread-branches")


@pytest.mark.parametrize("name", ["thread-branches", "task-cancelled-steps"])
@needs_fork
def test_a_process_that_cannot_exit_is_noticed(name: str, nursery: Nursery) -> None:
    """The canary: programs that end whatever we do prove nothing."""
    with pytest.raises(pytest.fail.Exception, match=r"(?s)does not end.*leaving"):
        nursery.leave(name, "planted", within=3)


@needs_fork
def test_a_process_that_ends_late_is_noticed(nursery: Nursery) -> None:
    """The canary: nobody is waited for any more, and the process stays all the same."""
    with pytest.raises(AssertionError, match=r"took \d+\.\d s to end"):
        nursery.leave(end_late.__name__)


def test_a_consumer_that_outlives_main_gets_everything() -> None:
    """Hazard: what lets the interpreter end cuts off those who are still at work."""
    printed = leave_anew(consumers_after_the_end_of_main.__name__)
    assert f"{printed.count('all tokens')} consumers" in printed


@needs_fork
@pytest.mark.parametrize(
    "program", [fork, fork_on_a_loop, fork_beside_readers], ids=lambda program: program.__name__
)
def test_a_fork_in_the_middle_of_streams(program: Callable[[], None], nursery: Nursery) -> None:
    """Hazard: the child waits for a lock, a thread or a loop that stayed with the parent."""
    assert "the parent goes on" in nursery.leave(program.__name__)


@needs_fork
def test_a_forked_child_exits(nursery: Nursery) -> None:
    """Hazard: the child's exit stops the parent's runs, or waits for their threads."""
    nursery.leave(fork_and_exit_in_child.__name__)
