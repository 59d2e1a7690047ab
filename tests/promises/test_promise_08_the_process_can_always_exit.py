"""Promise 8: whatever is left behind, the interpreter ends; and a fork's child can stream.

A stream that keeps the interpreter from ending can be seen only from outside of it: the
programs are in `tests.promises.leaving`.  Each is a process of its own, because how one
exits is what it is about.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.promises.leaving import (
    abandoned_in_background,
    abandoned_in_threads,
    cancelled_from_outside,
    consumer_in_a_daemon_thread,
    consumers_after_the_end_of_main,
    fork,
    fork_and_exit_in_child,
    handler_in_a_pool,
    handler_under_asyncio_run,
    late_step_under_asyncio_run,
    task_under_asyncio_run,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
LIMIT = 2.0  # seconds from the end of the main thread until nothing is waited for

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is for Unix")


def leave(program: Callable[[], None], *more: str, within: float = 15) -> str:
    """Run a program; what it printed, if it ended well and in time."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.promises.leaving", program.__name__, *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            printed, complaints = process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            process.kill()
            printed, complaints = process.communicate()
            pytest.fail(f"{program.__name__} does not end; it said: {printed} {complaints}")
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints, complaints
    # The last of each: a forked child may have left before.
    times = dict(
        line.split() for line in printed.splitlines() if line.startswith(("leaving", "left"))
    )
    took = float(times["left"]) - float(times["leaving"])
    assert took < LIMIT, f"{program.__name__} took {took:.1f} s to end"
    return printed


@pytest.mark.parametrize(
    "program",
    [
        abandoned_in_threads,
        abandoned_in_background,
        handler_in_a_pool,
        task_under_asyncio_run,
        handler_under_asyncio_run,
        late_step_under_asyncio_run,
        cancelled_from_outside,
        consumer_in_a_daemon_thread,
    ],
)
def test_the_interpreter_ends(program: Callable[[], None]) -> None:
    """Hazard: it joins a thread that waits for a consumer who has gone."""
    leave(program)


def test_a_process_that_cannot_exit_is_noticed() -> None:
    """The canary: programs that end whatever we do prove nothing."""
    with pytest.raises(pytest.fail.Exception, match="does not end"):
        leave(cancelled_from_outside, "planted", within=4)


def test_a_consumer_that_outlives_main_gets_everything() -> None:
    """Hazard: what lets the interpreter end cuts off those who are still at work."""
    printed = leave(consumers_after_the_end_of_main)
    assert f"{printed.count('all tokens')} consumers" in printed


@needs_fork
def test_a_fork_in_the_middle_of_streams() -> None:
    """Hazard: the child waits for a lock, a thread or a loop that stayed with the parent."""
    assert "the parent goes on" in leave(fork)


@needs_fork
def test_a_forked_child_exits() -> None:
    """Hazard: the child's exit stops the parent's runs, or waits for their threads."""
    leave(fork_and_exit_in_child)
