"""Which runs are restarts of failed ones.

An *attempt* fails when a run under which text was delivered ends with an error.  The run
that starts next under the same parent is its restart: the next try of a retry, the
fallback, the node that LangGraph executes again.  ::

    RunnableRetry
     ├── sequence, 1st try: failed          text was delivered under it
     │    ├── model "a b"
     │    └── parser, which raised
     └── sequence, 2nd try                  so this is a restart, and attempt 2
          ├── model "a b c"
          └── parser

Each restart takes the place of one failed run, the oldest of its parent's.  All runs that
start after it belong to the new attempt.  What goes on under a failed run, a parallel branch
that nobody cancels, goes on delivering text of the old one.

What happens here happens in LangChain's callbacks, several threads at once, and some of
those come from finalizers.  So there is no lock, only single changes of lists and dicts.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from typing import TYPE_CHECKING

from queuestream.errors import StreamClosedError

if TYPE_CHECKING:
    from uuid import UUID

    from queuestream._meter import Counter

__all__ = ["Attempts"]


class _Run:
    """A run: its parent, and the model runs under it that delivered text.

    Attributes:
        parent: Its parent's id.
        above: Its parent, if the start of that was reported.
        delivered: The model runs; grows while one of them goes on, even after the run's end.
        has_ended: Whether it has.
        has_failed: Whether it was an attempt, and failed.
        attempt: The number of the attempt that it belongs to.
    """

    __slots__ = ("above", "attempt", "delivered", "has_ended", "has_failed", "parent")

    def __init__(self, parent: UUID | None, above: _Run | None, attempt: int) -> None:
        self.attempt = attempt
        self.has_failed = False
        self.parent = parent
        self.above = above
        self.delivered: list[Counter] = []
        self.has_ended = False


class Attempts:
    """The runs of one stream, as far as it matters what is a restart of what.

    Args:
        restarts: Gets one entry for each restart.
        is_one_run: Whether runs without a parent are steps of one, a function say, and so may
            be restarts of each other.
    """

    __slots__ = ("_announced", "_failed", "_is_one_run", "_open", "_restarts")

    def __init__(self, restarts: list[object], *, is_one_run: bool = True) -> None:
        self._restarts = restarts
        self._announced: list[int] = []
        self._is_one_run = is_one_run
        self._open: dict[UUID, _Run] = {}
        # By parent, and for each failed run: the model runs under it that delivered text.
        self._failed: dict[UUID | None, deque[list[Counter]]] = {}

    @property
    def number(self) -> int:
        """The number of the attempt that goes on: the last one that the consumer hears of."""
        return max(self._announced, default=1)

    def announced(self, restart: UUID) -> None:
        """The consumer will hear of a restart before it hears of what starts from now on."""
        with contextlib.suppress(ValueError):  # its session is over, and this is the next one's
            self._announced.append(self.number_of(restart))

    def run_started(self, run_id: UUID, parent: UUID | None) -> list[Counter]:
        """Take note of a run; return what delivered the text that it is to deliver anew.

        Nothing, if it is no restart.
        """
        above = None if parent is None else self._open.get(parent)
        run = self._open[run_id] = _Run(parent, above, self.number)
        while above is not None:
            if above.has_failed:  # what goes on under it is of its attempt
                run.attempt = above.attempt
            above = above.above
        if self._failed and (failed := self._failed.get(parent)):
            with contextlib.suppress(IndexError):  # another was first
                replaced = failed.popleft()
                self._restarts.append(run_id)
                run.attempt = self.number_of(run_id)
                return replaced
        return []

    def is_open(self, run_id: UUID | None) -> bool:
        """Whether a run was reported to start and not to end."""
        return run_id is not None and run_id in self._open

    def attempt_of(self, run_id: UUID) -> int:
        """The number of the attempt that a run belongs to."""
        run = self._open.get(run_id)
        return self.number if run is None else run.attempt

    def number_of(self, restart: UUID) -> int:
        """The number of the attempt that a restart began."""
        return 2 + self._restarts.index(restart)

    def text_delivered(self, run_id: UUID | None, model_run: Counter) -> None:
        """A model run delivers its first text: it, and all above it, may fail from now on."""
        run = None if run_id is None else self._open.get(run_id)
        while run is not None:
            run.delivered.append(model_run)
            run = run.above

    def run_ended(self, run_id: UUID, error: BaseException | None) -> None:
        """Take note of the end of a run."""
        run = self._open.pop(run_id, None)
        if run is not None:
            run.has_ended = True
        self._failed.pop(run_id, None)
        if run is None or error is None or not run.delivered or not _is_failure(error):
            return
        run.has_failed = True
        if run.parent is None and not self._is_one_run:
            return
        if run.above is None or not run.above.has_ended:  # else nothing will take its place
            self._failed.setdefault(run.parent, deque()).append(run.delivered)


def _is_failure(error: BaseException) -> bool:
    """Whether an error is one.

    Not if it is the way in which LangGraph interrupts or hands over, or in which something
    ends that somebody has left early: a ``model.stream()``, or a stream of ours in the run.
    """
    if not isinstance(error, Exception) or isinstance(error, StreamClosedError):
        return False
    errors = sys.modules.get("langgraph.errors")
    bubble_up = getattr(errors, "GraphBubbleUp", None)
    return bubble_up is None or not isinstance(error, bubble_up)
