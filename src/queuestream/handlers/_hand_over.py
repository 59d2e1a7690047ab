"""Coroutines that are handed to an event loop, and are to come to their end there.

A thread that waits for one is told when it can't: the loop dies or is closed, before the
coroutine has begun or after that.  A closed loop tells nobody; but it drops what it was to
call, and whatever only that refers to, and `_loop_end` tells of it those that have begun.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from queuestream._background import on_background_loop
from queuestream._loop_end import when_closed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

__all__ = ["Outcome", "finish_before_the_loop_ends", "run_in_background", "run_on_loop"]

R = TypeVar("R")


class Outcome(Future[R]):
    """What becomes of a coroutine that is handed over; for the thread that waits.

    Attributes:
        task: Where it goes on, once it has begun.
    """

    task: ref[asyncio.Task[Any]] | None = None  # weakly, as its loop does

    def refuse(self, error: BaseException) -> None:
        """Tell the thread, unless it was told.  What has begun is cancelled.

        **Thread safety**: any thread; never waits.
        """
        try:
            self.set_exception(error)
        except InvalidStateError:
            return
        task = None if self.task is None else self.task()
        if task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)


class _HandOver:
    """A coroutine on its way to a loop: started by it once, or dropped with it.

    Args:
        coroutine: The coroutine.
        done: Gets its outcome.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], done: Outcome[Any]) -> None:
        self._coroutine: Coroutine[Any, Any, Any] | None = coroutine
        self._done = done
        self._task: asyncio.Task[None] | None = None  # the loop refers to it only weakly

    def start(self) -> None:
        if self._done.done():
            self.lose()
        elif self._coroutine is not None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._done.task = ref(task)
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is None:
            return
        if self._done.done():  # once more: whoever refused it meanwhile saw no task
            coroutine.close()
            return
        take_back = when_closed(asyncio.get_running_loop(), self.lose)
        try:
            value = await coroutine
        except (asyncio.CancelledError, GeneratorExit) as error:
            self.lose(error)
        except BaseException as error:
            self._end(error)
        else:
            self._end(None, value)
        finally:
            take_back()

    def lose(self, cause: BaseException | None = None) -> None:
        """It won't come to its end.  To a thread, that is no cancellation."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            coroutine.close()
        if not self._done.done():
            error = RuntimeError("a coroutine was handed to an event loop, and cancelled there")
            error.__cause__ = cause
            self._end(error)

    def _end(self, error: BaseException | None, value: object = None) -> None:
        try:
            if error is None:
                self._done.set_result(value)
            else:
                self._done.set_exception(error)
        except InvalidStateError:  # it was lost when its loop was closed
            pass

    def __del__(self) -> None:
        self.lose()


def run_in_background(coroutine: Coroutine[Any, Any, R], done: Outcome[R] | None = None) -> R:
    """Run a coroutine to its end on the shared loop, from a thread that may wait for it.

    Raises:
        RuntimeError: If the loop dies before that.
    """
    done = Outcome() if done is None else done
    hand_over = _HandOver(coroutine, done)
    on_background_loop(hand_over.start, hand_over.lose)
    return done.result()


def run_on_loop(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, R],
    done: Outcome[R] | None = None,
) -> R:
    """Run a coroutine to its end on a loop of another thread, from one that may wait for it.

    Raises:
        RuntimeError: If the loop is closed before that.
    """
    done = Outcome() if done is None else done
    hand_over = _HandOver(coroutine, done)
    try:
        loop.call_soon_threadsafe(hand_over.start)
    except RuntimeError:  # closed
        hand_over.lose()
    if loop.is_closed():  # closed while we called, it may keep what it will never do
        hand_over.lose()
    del hand_over  # so that it goes with the loop
    return done.result()


_TURNS = 4
"""Turns of a loop in which its end is seen to come."""

_TRIES = 3
"""Tries to begin, in case that somebody cancels whatever there is again and again."""


class _Last:
    """A task that a loop is not to leave behind.

    Whoever ends a loop, ``asyncio.run`` above all, cancels the tasks that are there, a turn or
    two after the main one is done.  So the work begins later than that.  If it was cancelled
    before, it is begun anew; nobody waits for that, but then asynchronous generators are
    closed, and one of ours takes as long as the work does.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._work = work
        self._has_begun = False
        self._tries = 0
        self._waiting = self._wait()
        with contextlib.suppress(StopIteration):
            self._waiting.__anext__().send(None)  # the loop knows it from here on
        self._begin(loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._tries += 1
        self._task = loop.create_task(self._do())
        _last.add(self._task)
        self._task.add_done_callback(self._done)

    async def _do(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._has_begun = True
        await self._work()

    def _done(self, task: asyncio.Task[None]) -> None:
        _last.discard(task)
        if not self._has_begun and self._tries < _TRIES:
            self._begin(task.get_loop())
            return
        # Unless it is being closed already, that takes one step.
        with contextlib.suppress(StopIteration, RuntimeError):
            self._waiting.aclose().send(None)

    async def _wait(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            while not self._task.done():
                await asyncio.wait([self._task])


_last: set[asyncio.Task[None]] = set()  # a loop refers to its tasks only weakly


def finish_before_the_loop_ends(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Do something asynchronous on the loop that runs in this thread.

    Args:
        loop: That loop.
        work: What to do.
    """
    _Last(loop, work)
