"""A queue whose lock, items, lines, sleepers and bells are of a schedule."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from janus import SyncQueueShutDown

from queuestream import _buffer, _doorbell, _turns
from queuestream._wakeups import ThreadWaiter
from tests.support.schedule import (
    ScheduledDeque,
    ScheduledList,
    ScheduledLocal,
    ScheduledRequests,
)
from tests.support.states import Hidden

if TYPE_CHECKING:
    import pytest

    from queuestream._buffer import Buffer
    from tests.support.schedule import Schedule

__all__ = [
    "Now",
    "is_all_over",
    "length",
    "put_into_schedules",
    "schedule_buffer",
    "schedule_stream",
    "with_a_point",
]


class Now:
    """The schedule that runs now, for what is made deep in the package."""

    schedule: Schedule
    is_short: bool
    """Whether points are left out that make no difference, see `tests.support.states`."""


def put_into_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make whatever waits, and whatever is a thread's own, part of the schedule that runs."""

    class Sleeper(ThreadWaiter):
        __slots__ = ()

        def __init__(self) -> None:
            super().__init__()
            gate = Now.schedule.lock(locked=True, is_certain="gives up" not in Now.schedule.name)
            self._gate = gate  # type: ignore[assignment]

    class Bell(_doorbell.Doorbell):
        __slots__ = ()

        def __init__(self, loop: Any) -> None:
            super().__init__(loop)
            if not Now.is_short:  # see test_doorbell.py
                self._wishes = ScheduledDeque(Now.schedule)

    monkeypatch.setattr(_buffer, "ThreadWaiter", Sleeper)
    monkeypatch.setattr(_doorbell, "Doorbell", Bell)
    monkeypatch.setattr(_doorbell, "_here", ScheduledLocal(bell=lambda: None))
    monkeypatch.setattr(_turns, "_here", ScheduledLocal(turn=_turns._Turn))


def schedule_buffer(buffer: Buffer[Any]) -> None:
    """Make a buffer part of the schedule that runs."""
    schedule, is_short = Now.schedule, Now.is_short
    requests = buffer._requests = ScheduledRequests(schedule, is_short=is_short)
    lock = schedule.lock(requests=requests if is_short else None)
    buffer._lock = lock  # type: ignore[assignment]
    buffer.items = ScheduledDeque(schedule, lock if is_short else None)
    buffer._putters.waiters = ScheduledList(schedule, lock if is_short else None)


def schedule_stream(answer: Any, buffer_class: type[Buffer[Any]]) -> Buffer[Any]:
    """Give a stream that has not begun a buffer for one, part of the schedule that runs."""
    buffer: Buffer[Any] = (
        with_a_point(buffer_class) if Now.is_short else buffer_class  # type: ignore[arg-type]
    )(1, low=0)
    tokens = answer._tokens
    tokens.name = "stream"  # without its number, or no state would come twice
    tokens.buffer = buffer
    tokens._sync_q.buffer = buffer
    tokens._async_q.buffer = buffer
    tokens._get = lambda waiter: buffer.try_get(waiter, SyncQueueShutDown)
    answer._reader._buffer = buffer
    answer._call.feed._buffer = buffer
    tokens.meter._waits = Hidden()
    schedule_buffer(buffer)
    return buffer


def is_all_over(buffer: Buffer[Any]) -> bool:
    """Whether it is shut down and nobody stands in a line: then nobody lines up any more.

    While somebody holds the lock, he may have looked for the end before it came.
    """
    lines = buffer._getters, buffer._putters
    return (
        buffer.is_shutdown
        and not buffer._lock.locked()
        and not any(length(each.waiters) for each in lines)
    )


@cache
def with_a_point(buffer_class: type[Buffer[Any]], *, is_joined: bool = False) -> type[Buffer[Any]]:
    """What is read there without the lock is read after a point, and not before one.

    Args:
        buffer_class: The class to add points to.
        is_joined: Whether somebody joins it.  Else no future depends on how many items are done.
    """

    class WithAPoint(buffer_class):  # type: ignore[valid-type, misc]
        __slots__ = ()
        hidden = () if is_joined else ("unfinished",)

        def get_now(self) -> Any:
            Now.schedule.point(step="look")
            return super().get_now()

        def shutdown(self, *, immediate: bool) -> None:
            Now.schedule.point(step="end")
            super().shutdown(immediate=immediate)

        def put_past_end(self, item: Any) -> None:
            Now.schedule.point(step="look")
            super().put_past_end(item)

        def _request(self, request: Any) -> None:
            if request == self._wake_all_at_end:  # others may see the end before
                Now.schedule.point(step="request")
            super()._request(request)

    return WithAPoint


def length(items: Any) -> int:
    """How many there are; no point of the schedule."""
    return sum(1 for _ in items)
