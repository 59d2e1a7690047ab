"""asyncio loops as threads of a schedule: real tasks, real cancellation, real closing.

A `ScheduledLoop` runs one handle after the other, to the end of the schedule.  Before each
another thread may go on, and before each ``call_soon_threadsafe``, which is the only way in from
elsewhere (after it, too, if the loop may be closed then); so the schedule's own explorer decides
when a wake-up is heard, and when the loop is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from asyncio import events
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Coroutine

    from tests.support.schedule import Schedule

__all__ = ["ScheduledLoop"]


class ScheduledLoop(asyncio.BaseEventLoop):
    """A loop that is a thread of a schedule.

    Args:
        schedule: The schedule.
        name: Of the thread.
        works: What its tasks do.

    Attributes:
        tasks: Its tasks, once it has begun.
        may_be_cancelled: Whether somebody calls `cancel`, and has not yet.
        may_be_shut: Whether somebody calls `shut`, or has.
        is_exposed: Whether the package cancels tasks on it from elsewhere: then it matters where
            among its handles that is heard.
        on_end: Called when its tasks are done, or it is closed.
        errors: What its handler of exceptions was told.

    """

    def __init__(
        self, schedule: Schedule, name: str, *works: Callable[[], Coroutine[Any, Any, object]]
    ) -> None:
        super().__init__()
        self._schedule = schedule
        self._is_shut = False
        self._is_between = False  # two handles
        self._callers = 0  # who are about to call it, from elsewhere
        self.may_be_cancelled = False
        self.may_be_shut = False
        self.is_exposed = False
        self._works = works
        self.tasks: list[asyncio.Task[object]] = []
        self.on_end: Callable[[], object] = lambda: None
        self.errors: list[BaseException] = []
        schedule.thread(name, self._live)
        schedule.at_end(self.close)  # one that has not begun

    def _live(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        is_done = False
        events._set_running_loop(self)
        try:
            self.tasks = [self.create_task(work()) for work in self._works]
            while True:
                if not is_done and all(task.done() for task in self.tasks):
                    is_done = True
                    self.on_end()
                    self._raise_errors()
                self._is_between = True
                self._schedule.point(
                    lambda: bool(ready) or self._is_shut, is_alone=self._is_alone, is_idle=is_done
                )
                self._is_between = False
                if self._is_shut:
                    return
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(None)
            self.close()
            for task in self.tasks:  # one that has not begun would complain, in a later test
                coroutine: Any = task.get_coro()
                if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                    coroutine.close()
            if not is_done:
                self.on_end()

    def _is_alone(self) -> bool:
        """Whether what it does next concerns nobody else: it goes on with a task of its own."""
        if self._schedule.is_short:
            return self._is_shut or not (self.may_be_shut or self.is_exposed)
        return not (self.may_be_cancelled or self.may_be_shut or self.is_exposed)

    def _raise_errors(self) -> None:
        for task in self.tasks:
            if not task.cancelled() and (error := task.exception()):
                raise error

    def shut(self) -> None:
        """Have it closed with all that goes on in it, and without a word to its tasks.

        By its own thread, at its next turn, as it is with real loops.
        """
        is_short = self._schedule.is_short
        self._schedule.point(lambda: self._is_between or not is_short, step="close")
        self._is_shut = True
        if not is_short:
            self._schedule.point()

    def cancel(self, number: int = 0) -> None:
        """Cancel a task, from any thread, as soon as there is one."""
        self._schedule.point(self._can_be_cancelled, step="cancel")
        call = self.call_soon if self._schedule.is_short else self.call_soon_threadsafe
        with contextlib.suppress(RuntimeError):  # closed
            call(self.tasks[number].cancel)
        self.may_be_cancelled = False

    def _can_be_cancelled(self) -> bool:
        if not (self._schedule.is_short and self.tasks) or self.is_closed():
            return self.is_closed() or bool(self.tasks)
        # Or as well later, just before another handle is appended.  See `call_soon`, too.
        is_asleep = self._is_between and not self._ready  # type: ignore[attr-defined]
        return is_asleep or self._callers > 0

    def forget(self) -> None:
        """Drop the tasks of a loop that was shut, after the schedule."""
        for task in self.tasks:
            if not task.done():
                coroutine: Any = task.get_coro()
                coroutine.close()

    # What asyncio's own loops add to the base.

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Do what asyncio's loops do."""
        self._check_closed()  # type: ignore[attr-defined]
        if (
            self._schedule.is_short
            and (self.is_exposed or (self.may_be_cancelled and self.tasks))
            and events._get_running_loop() is self
        ):
            self._schedule.point(beside=("cancel",))
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Do what asyncio's loops do."""
        self._callers += 1
        try:
            self._schedule.point(
                is_alone=lambda: not (self.may_be_cancelled or self.may_be_shut or self.is_exposed),
                step="cancel" if self.is_exposed else None,
            )
        finally:
            self._callers -= 1
        handle = self.call_soon(callback, *args, context=context)
        if self.may_be_shut:
            self._schedule.point()  # before the caller looks whether it is
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Say nothing of tasks that are pending when a loop is closed under them."""
        if error := context.get("exception"):
            self.errors.append(error)

    def get_debug(self) -> bool:
        """Whether it is slow, which nothing here is to be."""
        return False
