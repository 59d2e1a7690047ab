"""Who waits for whom, of runs and of event loops that are held up, where that may become a circle.

A plain consumer waits for its run; on a loop's own thread it holds up that loop.  Whoever hands
a coroutine to a loop waits for the loop, and whatever it is part of waits with it.

Whoever waits is noted before it looks: of those who begin at once, one sees the other.  A
circle is broken where a coroutine was handed over, which is refused: by who hands it over, or
by the consumer, if that comes later.
"""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from queuestream._background import is_background_loop
from queuestream._turns import running_asyncio_loop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection
    from typing import TypeAlias

__all__ = ["Party", "Wait", "join_run", "party_of", "waiting_here"]

Party: TypeAlias = "asyncio.AbstractEventLoop | str | None"
"""A loop, or None for the one that background runs share; or a run, by its queue's name."""

_runs_here: ContextVar[tuple[str, ...]] = ContextVar("queuestream runs", default=())
"""The runs that the caller is part of, by their queues' names: a queue would live on in copies."""

_queues: WeakValueDictionary[str, object] = WeakValueDictionary()


def join_run(name: str, queue: object) -> None:
    """Make the context that of a run.

    Args:
        name: Its queue's name.
        queue: Its queue; when that is gone, so is the run.
    """
    _queues[name] = queue
    _runs_here.set((*(outer for outer in _runs_here.get() if outer in _queues), name))


def party_of(loop: asyncio.AbstractEventLoop | None) -> Party:
    """What a loop is called here."""
    return None if loop is None or is_background_loop(loop) else loop


def waiting_here() -> tuple[Party, ...]:
    """All that stands still while the caller waits, as far as its thread and its context tell."""
    loop = running_asyncio_loop()
    return _runs_here.get() if loop is None else (*_runs_here.get(), party_of(loop))


@dataclass(slots=True, eq=False)
class Wait:
    """Somebody who waits.

    Attributes:
        of: All that stands still meanwhile.
        to: What it waits for.
        goes_on: Whether it still does.  Any thread.
        refuse: Ends the wait with an error, if that is possible.  Any thread; never waits.
    """

    of: Collection[Party]
    to: Party
    goes_on: Callable[[], bool]
    refuse: Callable[[], object] | None = None

    def begin(self) -> None:
        """Be seen.  Within the `try` that ends it, so that Ctrl-C leaves nobody behind."""
        _waits.append(self)

    def end(self) -> None:
        """Be seen no more."""
        with contextlib.suppress(ValueError):  # interrupted before it began, or forked
            _waits.remove(self)

    def is_circular(self) -> bool:
        """Whether what it waits for waits for it, if by way of others."""
        return _leads(self.to, self.of)

    def break_circles(self) -> None:
        """Refuse what others wait for, where that waits for this one."""
        for wait in tuple(_waits):
            refuse = wait.refuse
            if (
                refuse is not None
                and wait.goes_on()
                and _leads(self.to, wait.of)
                and _leads(wait.to, self.of)
            ):
                refuse()


_waits: list[Wait] = []


def _leads(start: Party, goals: Collection[Party]) -> bool:
    """Whether one of the goals is what ``start`` waits for, or is ``start`` itself."""
    reached = [start]
    for each in reached:
        if each in goals:
            return True
        reached += [
            wait.to
            for wait in tuple(_waits)
            if each in wait.of and wait.to not in reached and wait.goes_on()
        ]
    return False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_waits.clear)  # the parent's threads did not come along
