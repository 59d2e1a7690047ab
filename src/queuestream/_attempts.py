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
start after it belong to the new attempt.

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


class _Open:
    """A run that goes on: its parent, and the model runs under it that delivered text."""

    __slots__ = ("delivered", "parent")

    def __init__(self, parent: UUID | None) -> None:
        self.parent = parent
        self.delivered: list[Counter] = []


class Attempts:
    """The runs of one stream, as far as it matters what is a restart of what.

    Args:
        restarts: Gets one entry for each restart.
    """

    __slots__ = ("_failed", "_open", "_restarts")

    def __init__(self, restarts: list[object]) -> None:
        self._restarts = restarts
        self._open: dict[UUID, _Open] = {}
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
        self._open[run_id] = _Open(parent)
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
        above = run_id
        while above is not None and (run := self._open.get(above)) is not None:
            run.delivered.append(model_run)
            above = run.parent

    def run_ended(self, run_id: UUID, error: BaseException | None) -> None:
        """Take note of the end of a run."""
        run = self._open.pop(run_id, None)
        self._failed.pop(run_id, None)
        if run is not None and run.delivered and error is not None and _is_failure(error):
            self._failed.setdefault(run.parent, deque()).append(run.delivered)


def _is_failure(error: BaseException) -> bool:
    """Whether an error is one, and not the way in which LangGraph interrupts or hands over."""
    errors = sys.modules.get("langgraph.errors")
    bubble_up = getattr(errors, "GraphBubbleUp", None)
    return bubble_up is None or not isinstance(error, bubble_up)
