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
    """

    __slots__ = ("above", "delivered", "has_ended", "parent")

    def __init__(self, parent: UUID | None, above: _Run | None) -> None:
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

    __slots__ = ("_failed", "_is_one_run", "_open", "_restarts")

    def __init__(self, restarts: list[object], *, is_one_run: bool = True) -> None:
        self._restarts = restarts
        self._is_one_run = is_one_run
        self._open: dict[UUID, _Run] = {}
        # By parent, and for each failed run: the model runs under it that delivered text.
        self._failed: dict[UUID | None, deque[list[Counter]]] = {}

    @property
    def number(self) -> int:
        """The number of the attempt that goes on."""
        return 1 + len(self._restarts)

    def run_started(self, run_id: UUID, parent: UUID | None) -> list[Counter]:
        """Take note of a run; return what delivered the text that it is to deliver anew.

        Nothing, if it is no restart.
        """
        above = None if parent is None else self._open.get(parent)
        self._open[run_id] = _Run(parent, above)
        if self._failed and (failed := self._failed.get(parent)):
            with contextlib.suppress(IndexError):  # another was first
                replaced = failed.popleft()
                self._restarts.append(run_id)
                return replaced
        return []

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
        if run.parent is None and not self._is_one_run:
            return
        if run.above is None or not run.above.has_ended:  # else nothing will take its place
            self._failed.setdefault(run.parent, deque()).append(run.delivered)


def _is_failure(error: BaseException) -> bool:
    """Whether an error is one.

    Not if it is the way in which LangGraph interrupts or hands over, or in which a generator
    ends that somebody has left early: a ``model.stream()``, say.
    """
    if isinstance(error, GeneratorExit):
        return False
    errors = sys.modules.get("langgraph.errors")
    bubble_up = getattr(errors, "GraphBubbleUp", None)
    return bubble_up is None or not isinstance(error, bubble_up)
