"""Tasks and threads of a test's own that may wait, run until nothing moves any more.

For state machines: between two of their steps there is one right answer.  A thread that waits
is seen to: whatever it sleeps in tells so, once it can be woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, Literal

import janus

from queuestream._wakeups import ThreadWaiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import pytest

__all__ = ["WITHIN", "How", "SeenJanus", "Stage", "see_sleepers"]

How = Literal["task", "thread"]

WITHIN = 5.0
"""Seconds after which a test fails that hangs; nothing waits as long in one that passes."""
_TURNS = 20
"""Of the loop, in which all that follows from one step has happened."""

_here = threading.local()


def _tell() -> None:
    """The thread that calls this is about to sleep, and can be woken."""
    if (is_settled := getattr(_here, "is_settled", None)) is not None:
        is_settled.set()


def see_sleepers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have threads tell that sleep in a queue of ours: they stand in the line by then."""
    wait = ThreadWaiter.wait

    def tell_and_wait(waiter: ThreadWaiter, timeout: float | None) -> bool:
        _tell()
        return wait(waiter, timeout)

    monkeypatch.setattr(ThreadWaiter, "wait", tell_and_wait)


class _Condition(threading.Condition):
    def wait(self, timeout: float | None = None) -> bool:
        _tell()  # whoever notifies needs the lock, which is ours until we can be woken
        return super().wait(timeout)


class SeenJanus(janus.Queue[Any]):
    """A `janus.Queue` whose sleepers tell, too.

    Attributes:
        is_down: Set once it is shut down, by whatever thread.
    """

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self._sync_not_empty = _Condition(self._sync_mutex)
        self._sync_not_full = _Condition(self._sync_mutex)
        self._sync_tasks_done = _Condition(self._sync_mutex)
        self.is_down = threading.Event()

    def shutdown(self, immediate: bool = False) -> None:
        super().shutdown(immediate)
        self.is_down.set()


class Stage:
    """An asyncio loop that runs only when it is told to, and threads beside it.

    Args:
        outcomes: What comes of an operation that raises one of these, instead of the error.

    Attributes:
        within: Seconds after which somebody who should have moved does not any more.
    """

    def __init__(self, outcomes: Mapping[type[BaseException], object]) -> None:
        self._loop = asyncio.new_event_loop()
        self._outcomes = outcomes
        self._errors = tuple(outcomes)
        self.within = WITHIN

    def run(self, work: Awaitable[Any]) -> Any:
        """Run the loop until something is done."""
        return self._loop.run_until_complete(work)

    def here(self, operation: Callable[[], object]) -> object:
        """Do something in the test's own thread, and return what comes of it."""
        try:
            return operation()
        except self._errors as error:
            return self._outcome(error)

    def task(self, operation: Callable[[], Awaitable[object]]) -> asyncio.Future[object]:
        """Begin something in a task; it goes on in `settle`."""

        async def body() -> object:
            try:
                return await operation()
            except self._errors as error:
                return self._outcome(error)

        return self._loop.create_task(body())

    def thread(self, operation: Callable[[], object]) -> asyncio.Future[object]:
        """Begin something in a thread; return once that is through, or sleeps."""
        future = self._loop.create_future()
        is_settled = threading.Event()

        def body() -> None:
            _here.is_settled = is_settled
            outcome: object = None
            try:
                outcome = self.here(operation)
            except BaseException as error:
                outcome = error
            with contextlib.suppress(RuntimeError):  # the test has failed, and closed the loop
                self._loop.call_soon_threadsafe(future.set_result, outcome)
            is_settled.set()

        threading.Thread(target=body, daemon=True).start()
        assert is_settled.wait(WITHIN), "a thread neither sleeps nor is through"
        return future

    def settle(self, *expected: asyncio.Future[object]) -> None:
        """Run the loop until nothing moves any more, and those are through who should be."""

        async def turns() -> None:
            if expected:
                await asyncio.wait(expected, timeout=self.within)
            for _ in range(_TURNS):
                await asyncio.sleep(0)

        self.run(turns())

    def close(self) -> None:
        """Close the loop; what goes on there has failed the test, and is cancelled."""
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self.settle()
        self._loop.close()

    def _outcome(self, error: BaseException) -> object:
        for kind, outcome in self._outcomes.items():
            if isinstance(error, kind):
                return outcome
        raise AssertionError(error)
