"""A queue whose lock, items, lines, sleepers and bells are of a schedule."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from queuestream import _buffer, _doorbell, _turns
from queuestream._wakeups import ThreadWaiter, async_waiter
from tests.support.schedule import ScheduledDeque, ScheduledList, ScheduledLocal

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from queuestream._buffer import Buffer
    from queuestream._wakeups import Waiter
    from tests.support.schedule import Boundary, Schedule

__all__ = ["Now", "length", "put_into_schedules", "schedule_buffer", "with_a_point"]

W = TypeVar("W", bound="Waiter")


class Now:
    """The schedule that runs now, for what is made deep in the package."""

    schedule: Schedule
    may_leave: list[Waiter]
    """Those that may leave the line before they are called."""

    @classmethod
    def begin(cls, schedule: Schedule) -> None:
        """Another schedule runs."""
        cls.schedule = schedule
        cls.may_leave = []

    @classmethod
    def note(cls, waiter: W) -> W:
        """Take note of a waiter, which is made by the thread that runs."""
        if any(word in cls.schedule.name for word in ("gives up", "cancelled", "closed")):
            cls.may_leave.append(waiter)
        return waiter


def put_into_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make whatever waits, and whatever is a thread's own, part of the schedule that runs."""

    class Sleeper(ThreadWaiter):
        __slots__ = ()

        def __init__(self) -> None:
            super().__init__()
            Now.note(self)
            gate = Now.schedule.lock(locked=True, is_certain="gives up" not in Now.schedule.name)
            self._gate = gate  # type: ignore[assignment]

    class Bell(_doorbell.Doorbell):
        __slots__ = ()

        def __init__(self, loop: Any) -> None:
            super().__init__(loop)
            self._wishes = ScheduledDeque(Now.schedule)

    monkeypatch.setattr(_buffer, "async_waiter", lambda: Now.note(async_waiter()))
    monkeypatch.setattr(_buffer, "ThreadWaiter", Sleeper)
    monkeypatch.setattr(_doorbell, "Doorbell", Bell)
    monkeypatch.setattr(_doorbell, "_here", ScheduledLocal(bell=lambda: None))
    monkeypatch.setattr(_turns, "_here", ScheduledLocal(turn=_turns._Turn))


def schedule_buffer(buffer: Buffer[Any], matters: Callable[[Boundary], bool] | None = None) -> None:
    """Make a buffer part of the schedule that runs.

    Args:
        buffer: The buffer.
        matters: As of `ScheduledLock`.  If given, what the lock's holder does is one step.
    """
    schedule = Now.schedule
    lock = schedule.lock(matters=matters or (lambda _: True))
    buffer._lock = lock  # type: ignore[assignment]
    buffer.items = ScheduledDeque(schedule, lock if matters else None)
    buffer._putters.waiters = ScheduledList(schedule, lock if matters else None)


@cache
def with_a_point(buffer_class: type[Buffer[Any]]) -> type[Buffer[Any]]:
    """What is read there without the lock is read after a point, and not before one."""

    class WithAPoint(buffer_class):  # type: ignore[valid-type, misc]
        __slots__ = ()

        def get_now(self) -> Any:
            Now.schedule.point()
            return super().get_now()

    return WithAPoint


def length(items: Any) -> int:
    """How many there are; no point of the schedule."""
    return sum(1 for _ in items)
