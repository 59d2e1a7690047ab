"""Threads that change all the time, and two that are sure to meet where a race is planted."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Meeting", "hasty"]


@contextmanager
def hasty() -> Iterator[None]:
    """Have the interpreter change threads as often as it can.

    It changes them where a function begins and where a loop goes back.  So ``+= 1`` on a plain
    attribute is one step all the same, unless the interpreter has no lock.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Meeting:
    """A place in the middle of something at which two threads are at the same time, once.

    The first two that come wait there for each other; all others pass.
    """

    def __init__(self) -> None:
        self._seats = [1, 2]
        self._both = threading.Barrier(2)

    def attend(self) -> None:
        """Wait for the other one."""
        try:
            self._seats.pop()  # one step, with the interpreter's lock or without
        except IndexError:
            return
        self._both.wait(10)
