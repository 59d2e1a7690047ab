"""Having something happen at a certain line of this package, one line a run.

What may come between any two steps of a thread, a collection or Ctrl-C, comes at a line here, as
`sys.settrace` counts them.  So a test goes through all the lines that a run comes to.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import queuestream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["AtLine", "Place", "new_threads_traced", "who_runs"]

_SOURCE = str(Path(queuestream.__file__).parent)
_TESTS = str(Path(__file__).parent.parent)


def who_runs() -> object:
    """Return the task that the caller is, or its thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return task or threading.current_thread()


class Place(NamedTuple):
    """Where something was done.

    Attributes:
        file: The file's name.
        line: The line's number, which was about to be run.
        function: What it belongs to.
        by_consumer: Whether it was the consumer who came to it.
    """

    file: str
    line: int
    function: str
    by_consumer: bool


class AtLine:
    """Has something done at a certain line of this package, by whoever comes to it.

    Args:
        line: How many lines are run before it.
        do: What is done, with the frame.  What it raises is raised there, and ends the tracing
            of its thread.

    Attributes:
        consumer: The thread or task that consumes, as of `who_runs`.
        is_counting: Whether the lines count now.
        place: Where it was done, once it was.
    """

    place: Place

    def __init__(self, line: int, do: Callable[[FrameType], object]) -> None:
        self.consumer: object = None
        self.is_counting = False
        self._left = line
        self._do = do

    @property
    def has_happened(self) -> bool:
        """Whether there were so many lines."""
        return self._left < 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """Count, as `sys.settrace` has it."""
        code = frame.f_code
        if not code.co_filename.startswith(_SOURCE):
            return None
        if event == "line" and self.is_counting:
            self._count(frame)
        return self.trace

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """Count calls instead, as `sys.setprofile` has it: where Ctrl-C can come.

        CPython looks for signals where a function begins, and where one of C's has returned; not
        between any two lines, so that what it begins a ``with`` with is ended (bpo-29988).
        """
        if not self.is_counting or event not in ("call", "c_return"):
            return
        file, caller = frame.f_code.co_filename, frame.f_back
        is_called_by_ours = (
            event == "call"
            and caller is not None
            and caller.f_code.co_filename.startswith(_SOURCE)
            and not file.startswith(_TESTS)
        )
        if file.startswith(_SOURCE) or is_called_by_ours:
            self._count(frame)

    def _count(self, frame: FrameType) -> None:
        self._left -= 1
        if self._left == -1:
            code, is_consumer = frame.f_code, who_runs() is self.consumer
            self.place = Place(
                Path(code.co_filename).name, frame.f_lineno, code.co_name, is_consumer
            )
            self._do(frame)


@contextmanager
def new_threads_traced(trace: Any) -> Iterator[None]:
    """Have a trace function in each thread that is started in the block."""
    before = threading.gettrace()
    threading.settrace(trace)
    try:
        yield
    finally:
        threading.settrace(before)
