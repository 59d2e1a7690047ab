"""Between a run and its consumer: the queue, and what each gets when the other is gone.

A consumer gets the items that are there, then `Ended`.  What a run gets once its consumer
has gone, or once it is over, depends on where it asks::

    a thread                 RunStopped, a BaseException: no retry, no fallback
    a task                   StreamClosedError: LangChain breaks on a BaseException there.
                             First a few turns of the loop, in which the cancellation of a
                             run that is ours arrives
    sync code on a loop's    nothing at a token, StreamClosedError at the next start
    own thread

The queue is a `MixedQueue`, or one that was given and follows janus's protocols.  Both are
used through the same two faces, and end by ``shutdown``; what must not wait differs.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # before the end of this file, see there
import contextlib
import logging
import os
import sys
import threading
import weakref
from _thread import start_new_thread
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
from janus import (
    AsyncQueueEmpty,
    AsyncQueueShutDown,
    SyncQueueEmpty,
    SyncQueueFull,
    SyncQueueShutDown,
)

from queuestream._background import RUN_THREAD
from queuestream._buffer import BLOCKED, Buffer, Stale, checked_maxsize, members
from queuestream._meter import Meter
from queuestream._turns import end_turn, must_yield, running_asyncio_loop
from queuestream._waits import Wait, waiting_here
from queuestream._wakeups import async_waiter, current_loop
from queuestream.errors import (
    ConcurrentIterationError,
    PlacementError,
    RunCancelledError,
    RunStopped,
    StreamClosedError,
)
from queuestream.mixed_queue import AsyncFace, SyncFace

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator

    import janus

    from queuestream._wakeups import AsyncWaiter

__all__ = [
    "DEFAULT_MAXSIZE",
    "Ended",
    "TimedOut",
    "TokenQueue",
    "consumer_error",
    "logger",
]

logger = logging.getLogger("queuestream")

T = TypeVar("T")


_SHORT = 0.1
"""Seconds that a consumer may hold up its loop, and with it the run."""

_GRACE = 0.25
"""Seconds that the threads of stopped runs have to end before the interpreter does."""


class _Default(int):
    """A number that is known to be the default."""


DEFAULT_MAXSIZE = _Default(256)

_PATIENCE = 16
"""Turns of the loop that a stopped run of ours waits for its cancellation.  LangChain and
LangGraph hand a cancellation down in one to four turns; where somebody swallowed it, the
run gets a StreamClosedError after these."""


class Ended(Exception):  # noqa: N818 - an event, not an error
    """The queue has ended, and the consumer has received all that was in it."""


class TimedOut(Exception):  # noqa: N818 - an event, not an error
    """There was no item in the time that a consumer wanted to wait."""


def consumer_error(error: BaseException) -> BaseException:
    """What a consumer gets for an error of the run: the same, but for impostors of the end.

    Where a model raises a BaseException, LangChain's ``agenerate`` takes it for an answer,
    and looks for its generations: the error that comes of this holds the model's own.
    """
    if (
        isinstance(error, AttributeError)
        and error.name == "generations"
        and isinstance(error.obj, BaseException)
    ):
        error = error.obj
    wrapped: Exception
    if isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit)):
        wrapped = RuntimeError(f"the run raised {type(error).__name__}")
    elif isinstance(error, asyncio.CancelledError):
        wrapped = RunCancelledError("somebody else cancelled the run")
    else:
        return error
    wrapped.__cause__ = error
    return wrapped


class TokenQueue(Generic[T]):
    """What a run puts into and its consumer takes from.

    Args:
        name: Says whose it is, in messages.
        maxsize: As of `MixedQueue`.
        queue: The queue to use instead of one of ours.
        is_ours: Whether the run is ours to cancel (see the module's docstring).
        join: As of `Buffer`: what to do when full, before waiting.

    Attributes:
        name: As given.
        is_given: Whether the queue was given to us: it serves one run, and holds no marks.
        consumers: The calls of `get` that go on; one at most, but for those that are refused.
        consumer_thread: Where the latest one was made.
        closed: Whether the consumer has gone.  Set once, without a lock.
        ended: Whether the run is over.  Set once, without a lock.
        failure: What broke a given queue, or the run, for the consumer to raise at its end.
        is_open: Whether a run or its leavings are in it; such a queue does not survive a
            fork and is closed at exit.
        is_left: Whether this is a forked child's copy of what the parent goes on with.
        last_dropped: When the run last had something that is not for the consumer, by the
            monotonic clock.
        meter: What is measured.
        buffer: The buffer, of a queue whose inside we know; else None.
        lock: For the owner's state; made anew in a forked child.  Reentrant: a generator
            that the collector drops reports its end from within whatever goes on.
    """

    __slots__ = (
        "__weakref__",
        "_async_q",
        "_close_is_done",
        "_get",
        "_is_ours",
        "_join",
        "_sync_q",
        "_waiter",
        "_warned",
        "buffer",
        "closed",
        "consumer_thread",
        "consumers",
        "ended",
        "failure",
        "is_given",
        "is_left",
        "is_open",
        "last_dropped",
        "lock",
        "meter",
        "name",
    )

    def __init__(
        self,
        name: str,
        maxsize: int,
        queue: object | None = None,
        *,
        is_ours: bool = False,
        join: Callable[[deque[T], T], bool] | None = None,
    ) -> None:
        self.name: str = name
        self._is_ours = is_ours
        self._join = join
        self.last_dropped: float = -inf
        self.buffer: Buffer[T] | None = None
        self._sync_q: janus.SyncQueue[T]
        self._async_q: janus.AsyncQueue[T]
        maxsize = checked_maxsize(maxsize)
        self.is_given: bool = queue is not None
        if queue is None:
            self.buffer = Buffer(
                maxsize, low=maxsize // 2, join=None if join is None else self._join_and_count
            )
            self._sync_q, self._async_q = SyncFace(self.buffer), AsyncFace(self.buffer)
        elif join is not None:
            raise ValueError(
                'overflow="merge" and queue= exclude each other: joining needs a queue of ours'
            )
        elif maxsize is not DEFAULT_MAXSIZE:
            raise ValueError(
                f"maxsize={maxsize!r} and queue= exclude each other: the queue has a maxsize of "
                "its own"
            )
        else:
            self._sync_q, self._async_q = _checked_faces(queue)
            if isinstance(self._sync_q, SyncFace):
                self.buffer = self._sync_q.buffer
        if self.buffer is not None:
            self._get = partial(self.buffer.try_get, shut_down=SyncQueueShutDown)
        self._waiter: AsyncWaiter | None = None
        self.measure(Meter())
        self.consumers: list[object] = []
        self.consumer_thread: int | None = None
        self._warned = False
        self.closed: bool = False
        self._close_is_done = False
        self.ended: bool = False
        self.failure: BaseException | None = None
        self.is_open: bool = False
        self.is_left: bool = False
        self.lock: threading.RLock = threading.RLock()
        _queues.add(self)

    def measure(self, meter: Meter) -> None:
        """Measure with a meter from now on."""
        meter.buffer = self.buffer
        self.meter: Meter = meter

    def _join_and_count(self, items: deque[T], item: T) -> bool:
        assert self._join is not None
        if not self._join(items, item):
            return False
        self.meter.merged += 1  # under the buffer's lock
        return True

    # -- the run's side --------------------------------------------------------------------

    def put(self, item: T, is_stale: Callable[[], bool] | None = None) -> None:
        """Put an item from a thread; wait when full.

        Args:
            item: The item.
            is_stale: Tells that nobody is to have the item any more, also while this waits;
                it is dropped then.  Called under a lock.  A change needs a `recheck`.

        Raises:
            RunStopped: If the consumer has gone or the run is over.
        """
        self.is_open = True
        buffer = self.buffer
        try:
            if buffer is None:
                self._put_into_given(item)
            elif buffer.try_put(item, None, SyncQueueShutDown, is_stale) is BLOCKED:
                if current_loop() is None:
                    attempt = partial(
                        buffer.try_put, item, shut_down=SyncQueueShutDown, is_stale=is_stale
                    )
                    with self.meter.waiting():
                        buffer.wait_in_thread(attempt, None, SyncQueueFull)
                else:  # trio's own thread: its consumer could never come
                    self.put_at_once(item)
        except Stale:
            return
        except Exception as error:
            if not _is_shutdown(error):
                raise
        else:
            return
        raise RunStopped(self.name)  # out here it has no context

    def _put_into_given(self, item: T) -> None:
        if self.closed:  # and shut down in a moment, see `close`
            raise SyncQueueShutDown
        try:
            self._sync_q.put(item, False)
        except SyncQueueFull:
            if current_loop() is not None:
                self.put_at_once(item)
                return
            with self.meter.waiting():
                self._sync_q.put(item)
        self._note_peak()

    def _note_peak(self) -> None:
        """Measure a queue that does not do it itself.  Two producers at once may hide a peak."""
        self.meter.peak = max(self.meter.peak, self._sync_q.qsize())

    async def put_in_task(self, item: T, is_stale: Callable[[], bool] | None = None) -> None:
        """Put an item from a task; wait when full.

        Args:
            item: The item.
            is_stale: As of `put`.

        Raises:
            StreamClosedError: If the consumer has gone or the run is over.

        **Cancellation**: the item is not in the queue.
        """
        self.is_open = True
        buffer = self.buffer
        try:
            if buffer is None:
                await self._put_into_given_in_task(item)
            else:
                if must_yield():
                    await end_turn()
                if buffer.try_put(item, None, AsyncQueueShutDown, is_stale) is BLOCKED:
                    attempt = partial(
                        buffer.try_put, item, shut_down=AsyncQueueShutDown, is_stale=is_stale
                    )
                    with self.meter.waiting():
                        await buffer.wait_in_task(attempt)
        except Stale:
            return
        except Exception as error:
            if not _is_shutdown(error):
                raise
        else:
            return
        await self.refuse_in_task()

    async def _put_into_given_in_task(self, item: T) -> None:
        if self.closed:  # as above
            raise AsyncQueueShutDown
        if self._async_q.full():
            with self.meter.waiting():
                await self._async_q.put(item)
        else:
            await self._async_q.put(item)
        self._note_peak()

    def recheck(self) -> None:
        """Have those who wait for a free slot ask again whether their items are stale."""
        if self.buffer is not None:
            self.buffer.recheck_putters()

    def refuse(self) -> None:
        """Stop a run that asks for more, in a thread or in a task's plain callback."""
        if running_asyncio_loop() is None:
            raise RunStopped(self.name)
        raise self._closed_error()

    async def refuse_in_task(self) -> None:
        """Stop the task that asks for more: by its cancellation, if that is on its way."""
        if self._is_ours:
            for _ in range(_PATIENCE):
                await asyncio.sleep(0)
        raise self._closed_error()

    def _closed_error(self) -> StreamClosedError:
        what = "was closed by its consumer" if self.closed else "is over"
        return StreamClosedError(f"{self.name} {what}")

    def put_at_once(self, item: T) -> None:
        """Put an item for synchronous code that holds up a loop: never wait.

        The consumer may be on that loop.  So where there is no free slot, the item goes past
        ``maxsize``; and where the consumer has gone, the item is dropped, because the run
        can be stopped only when its call returns.
        """
        self.is_open = True
        try:
            self._sync_q.put(item, False)
        except SyncQueueFull:
            pass
        except Exception as error:
            if not _is_shutdown(error):
                raise
            return
        else:
            return
        if self.buffer is None:
            self.failure = PlacementError(
                f"{self.name}: synchronous code that holds up an event loop must not wait, and "
                "the queue that was given is full: leave queue= out, give a larger one, or call "
                "the model with ainvoke there"
            )
            self.end()
            return
        self.buffer.put_past_end(item)
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s: synchronous code holds up an event loop (an async def that calls invoke?) "
                "and cannot wait for the consumer; its tokens go past maxsize",
                self.name,
            )

    # -- the consumer's side ---------------------------------------------------------------

    def get(self, limit: float | None = None) -> T:
        """Take the next item from a thread; wait for it.

        Args:
            limit: Seconds to wait at most, counted anew from each thing that the run has and
                that is not for the consumer; for ever if None.

        Raises:
            Ended: If there will be none.
            TimedOut: If there was none in time.
            ConcurrentIterationError: If another consumer waits already.
        """
        me = object()
        try:
            self.enter(me)
            if not self.closed:
                buffer = self.buffer
                if buffer is not None and (item := buffer.get_now()) is not BLOCKED:
                    return item
                if limit is not None:
                    return self._sleep(partial(self._get_within, limit, is_extended=True))
                if buffer is None:
                    return self._sleep(self._sync_q.get)
                return self._sleep(partial(buffer.wait_in_thread, self._get, None, SyncQueueEmpty))
        except Exception as error:
            if not _is_shutdown(error):
                raise
        finally:
            # As `_leave` does, but Ctrl-C can come where a function begins.
            try:
                self.consumers.remove(me)
            except ValueError:  # interrupted before it entered
                pass
        raise Ended

    def _sleep(self, get: Callable[[], T]) -> T:
        """Take the next item, for which ``get`` may sleep.

        The run is not to wait for a loop that this holds up, see `_waits`.
        """
        waiting = waiting_here()
        if not waiting:
            return get()
        before = -1
        while before != (before := self._number_put()):  # with an item that has come, and gone
            with contextlib.suppress(SyncQueueEmpty):
                return self._sync_q.get(False)
        wait = Wait(waiting, self.name, partial(self._is_silent_since, before))
        try:
            wait.begin()
            wait.break_circles()
            return get()
        finally:
            wait.end()

    def _is_silent_since(self, before: int) -> bool:
        """Whether nothing has come that ends a wait for an item, though it may not know yet."""
        if self.closed or self.ended or (self.buffer is None and self._sync_q.qsize()):
            return False
        return before == self._number_put()

    def _number_put(self) -> int:
        """How many items were put, as one sees who has had the lock; a given queue does not say."""
        return 0 if self.buffer is None else self.buffer.unfinished

    def _get_within(self, limit: float, *, is_extended: bool) -> T:
        since = monotonic()
        while True:
            with contextlib.suppress(SyncQueueEmpty):
                return self._sync_q.get(timeout=max(0.0, since + limit - monotonic()))
            since = self._time_again(since, is_extended=is_extended)

    async def _get_within_in_task(self, limit: float, *, is_extended: bool) -> T:
        if self.has_items():
            return await self._async_q.get()
        since = monotonic()
        while True:
            with anyio.move_on_after(max(0.0, since + limit - monotonic())):
                return await self._async_q.get()
            with contextlib.suppress(AsyncQueueEmpty):  # it came in the same moment
                return self._async_q.get_nowait()
            since = self._time_again(since, is_extended=is_extended)

    def _time_again(self, since: float, *, is_extended: bool) -> float:
        """From when a wait that has lasted long enough counts; raise if it is over."""
        if not is_extended or self.last_dropped <= since:
            raise TimedOut
        return self.last_dropped

    async def get_in_task(self, limit: float | None = None) -> T:
        """Like `get`, from a task.

        **Cancellation**: no item is taken.
        """
        me = object()
        try:
            self.enter(me)
            if not self.closed:
                buffer = self.buffer
                if limit is not None:
                    return await self._get_within_in_task(limit, is_extended=True)
                if buffer is None:
                    return await self._async_q.get()
                if must_yield():
                    await end_turn()
                waiter, self._waiter = self._waiter, None  # it serves again, if all goes well
                waiter = async_waiter(waiter)
                item = await buffer.wait_in_task(self._get, waiter)
                self._waiter = waiter
                return item
        except Exception as error:
            if not _is_shutdown(error):
                raise
        finally:
            self._leave(me)
        raise Ended

    # A piece is made of several items; its consumer is one, from the first to the last.

    @contextlib.contextmanager
    def consuming(self) -> Iterator[None]:
        """Be the one consumer in this block.

        Raises:
            ConcurrentIterationError: If there is another already.
        """
        me = object()
        try:
            self.enter(me)
            yield
        finally:
            self._leave(me)

    def get_more(self, limit: float | None, *, is_extended: bool) -> T:
        """Like `get`, where the caller is `consuming`."""
        try:
            if not self.closed:
                if limit is None:
                    return self._sleep(self._sync_q.get)
                get = partial(self._get_within, limit, is_extended=is_extended)
                is_short = not is_extended and limit <= _SHORT
                return get() if is_short else self._sleep(get)
        except Exception as error:
            if not _is_shutdown(error):
                raise
        raise Ended

    async def get_more_in_task(self, limit: float | None, *, is_extended: bool) -> T:
        """Like `get_in_task`, where the caller is `consuming`."""
        try:
            if not self.closed:
                if limit is None:
                    return await self._async_q.get()
                return await self._get_within_in_task(limit, is_extended=is_extended)
        except Exception as error:
            if not _is_shutdown(error):
                raise
        raise Ended

    def get_waiting(self) -> Iterator[T]:
        """Take what waits now, perhaps nothing, where the caller is `consuming`.

        Each item is taken when it is asked for: nobody who is interrupted has taken more.
        """
        for _ in range(self._sync_q.qsize()):
            try:
                item = self._sync_q.get(False)
            except SyncQueueEmpty:
                return  # what waited was no item
            except Exception as error:
                if not _is_shutdown(error):
                    raise
                return
            yield item

    def enter(self, me: object) -> None:
        """Be the one consumer until ``me`` is removed from `consumers`.

        Within the caller's `try`, so that a KeyboardInterrupt leaves nobody behind.

        Raises:
            ConcurrentIterationError: If there is another already.
        """
        self.consumers.append(me)
        if self.consumers[0] is not me:
            raise ConcurrentIterationError(
                f"another thread or task is waiting for the next token of {self.name}; one "
                "consumer at a time"
            )
        self.consumer_thread = threading.get_ident()

    def _leave(self, me: object) -> None:
        try:
            self.consumers.remove(me)
        except ValueError:  # interrupted before it entered
            pass

    def end_error(self) -> StreamClosedError | None:
        """Why a consumer that met `Ended` did not meet the end, if it did not."""
        if self.closed or not self.ended:
            return StreamClosedError(f"{self.name} was closed before its end")
        return None

    def has_items(self) -> bool:
        """Whether something waits for the consumer."""
        return self._sync_q.qsize() > 0

    # -- the end ---------------------------------------------------------------------------

    def mark(self, item: T) -> None:
        """Put an item that needs no free slot; not into a queue that was given."""
        assert self.buffer is not None
        self.buffer.put_past_end(item)

    def end(self) -> None:
        """The run is over: the consumer gets what is there, then `Ended`.  Idempotent."""
        self.ended = True
        self.meter.stop()
        self._sync_q.shutdown()

    def close(self, cancel: Callable[[], object] | None = None) -> None:
        """The consumer goes: drop what is there and stop the run at its next call.

        Args:
            cancel: Stops the run by other means.  Called between the two steps: after it is
                clear whose doing it is, before the run meets the closed queue.

        **Thread safety**: any thread or task, finalizers and signal handlers; never waits.
        """
        if self._close_is_done:
            return
        # From here on idempotent: a KeyboardInterrupt may leave the rest to the next call.
        self.closed = True
        self.meter.stop()
        if cancel is not None:
            cancel()
        if self.buffer is not None:
            self.buffer.shutdown(immediate=True)
        else:
            # A given queue takes its lock, which this very thread may hold further down.
            with contextlib.suppress(RuntimeError):  # no new threads at the interpreter's end
                start_new_thread(self._sync_q.shutdown, (True,))
        self._close_is_done = True

    def close_at_exit(self) -> None:
        """Let go of producers that would keep the interpreter from ending.

        Not where a thread that the interpreter waits for goes on iterating.
        """
        if self.is_open and not self._is_iterated():
            self.close()

    def _is_iterated(self) -> bool:
        for thread in threading.enumerate():  # only those that live
            if thread.ident == self.consumer_thread:
                break
        else:
            return False
        if thread is threading.main_thread() or thread.daemon:
            return False
        if self.consumers:
            return True
        # Between two tokens; or it is an executor's, and waits for other work.
        frame = sys._current_frames().get(self.consumer_thread or 0)  # noqa: SLF001 - documented
        return frame is None or frame.f_code is not _executor_code

    def leave_to_parent(self) -> None:
        """After a fork, in the child: the run is the parent's, and so are all locks."""
        self.consumers.clear()
        self.lock = threading.RLock()
        if self.is_open:
            self.is_left = self.closed = self._close_is_done = True
            if self.buffer is not None:
                self.buffer.shutdown(immediate=True)  # nobody waits in it, so none is woken

    def uses(self, sync_q: object) -> bool:
        """Whether ``sync_q`` is the queue that was given for this."""
        return self._sync_q is sync_q


def _is_shutdown(error: Exception) -> bool:
    """Whether a queue says that it was shut down; some libraries have exceptions of their own."""
    return isinstance(error, (SyncQueueShutDown, AsyncQueueShutDown)) or type(
        error
    ).__name__.endswith("ShutDown")


_METHODS = ("put", "get", "put_nowait", "get_nowait", "qsize", "empty", "full", "shutdown")


def _checked_faces(queue: object) -> tuple[Any, Any]:
    sync_q: Any = getattr(queue, "sync_q", None)
    async_q: Any = getattr(queue, "async_q", None)
    for face in (sync_q, async_q):
        if any(not callable(getattr(face, name, None)) for name in _METHODS):
            raise TypeError(
                "queue must follow janus's protocols, as janus.Queue and MixedQueue do: sync_q and "
                f"async_q, each with {', '.join(_METHODS)}; got {queue!r}"
            )
    if getattr(sync_q, "closed", False):
        raise ValueError(f"queue must be open and used for nothing else; {queue!r} is closed")
    if sync_q.qsize():
        raise ValueError(
            f"queue must be empty and used for nothing else; {queue!r} holds {sync_q.qsize()} items"
        )
    if any(other.uses(sync_q) for other in members(_queues)):
        raise ValueError(f"queue must be used for nothing else; {queue!r} has a stream already")
    return sync_q, async_q


_executor_code = getattr(
    getattr(concurrent.futures.thread, "_worker", None), "__code__", "not where it used to be"
)
"""What a thread of an executor runs between two pieces of work."""

_queues: weakref.WeakSet[TokenQueue[Any]] = weakref.WeakSet()


def _close_all_at_exit() -> None:
    for queue in members(_queues):
        queue.close_at_exit()
    # A daemon thread that is still at work when the interpreter is gone may abort the process
    # (before Python 3.14 it is unwound, and not every extension can be).  A run that was
    # stopped comes to its end in no time, unless its model is silent.
    deadline = monotonic() + _GRACE
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith(RUN_THREAD):
            with contextlib.suppress(RuntimeError):  # it is just being started
                thread.join(max(0.0, deadline - monotonic()))


def _leave_all_to_parent() -> None:
    for queue in members(_queues):
        queue.leave_to_parent()


# concurrent.futures joins its threads before atexit's functions run, and a producer that
# waits in one of them would wait for ever.  threading's own hooks, which are private, run
# before that, the last one first: so concurrent.futures must have registered its hook.
getattr(threading, "_register_atexit", atexit.register)(_close_all_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)
