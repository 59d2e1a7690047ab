"""The bounded queue between threads and tasks.  Nothing else guards a buffer.

One lock, one deque of items, and three lines of waiters: getters, putters, joiners.
Both faces, sync and async, do the same three things with them, each in one critical
section: *try*, and where that is not possible *line up*; then sleep outside of the lock.
A wake-up is no promise of an item: the woken one tries again, and whoever came first
in the meantime has it.  It then lines up again where it stood, because its ticket is
older than anybody's behind it, so that waiters are served in the order of their arrival.

Why no wake-up is lost, for getters (putters and free slots are the mirror image).  Let
``w`` be the getters that were woken and have not tried again yet.  Then: *while anyone
is lined up, w >= items*.  A getter lines up only where there is no item; a put adds an
item and wakes one more; a get removes an item, and at most one of the woken ones with
it; a woken one that finds nothing lines up again, when there are no items.  What is
left is a woken one that gives up (timeout, cancellation, its loop closed): it wakes the
next in line if there is something to be had.

What may run in a finalizer or a signal handler, which may have interrupted the holder of
the lock on the same thread, must not wait for the lock: shutting down, and the clean-up
of a waiting coroutine that the collector drops.  Such a *request* is put into a list,
the lock is tried, and whoever holds it looks at the list after releasing it (`_settle`).

No user code runs and nobody is woken under the lock; items are dropped outside of it.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import anyio.lowlevel
import janus
from janus import (
    AsyncQueueEmpty,
    AsyncQueueFull,
    AsyncQueueShutDown,
    SyncQueueEmpty,
    SyncQueueFull,
    SyncQueueShutDown,
)

from queuestream._wakeups import ThreadWaiter, async_waiter, must_yield

if TYPE_CHECKING:
    from collections.abc import Iterable

    from queuestream._wakeups import Waiter

__all__ = ["MixedQueue", "checked_maxsize"]

T = TypeVar("T")
R = TypeVar("R")


class _Blocked(Enum):
    BLOCKED = "an attempt that has to wait"


_BLOCKED: Final = _Blocked.BLOCKED

_Request = Callable[[list[object]], "list[Waiter]"]
"""Something to do under the lock.  It answers whom to wake after the lock is released,
and adds to its argument what must not be dropped before that."""

_tickets = itertools.count(1)


def _nothing() -> None:
    """A dead weak reference."""


def checked_maxsize(maxsize: object) -> int:
    """``maxsize`` if it is a whole number from 0 up.

    Raises:
        TypeError: If it is no ``int`` (a ``bool`` is none).
        ValueError: If it is negative.
    """
    if not isinstance(maxsize, int) or isinstance(maxsize, bool):
        raise TypeError(f"maxsize must be an int, 0 for unbounded, not {maxsize!r}")
    if maxsize < 0:
        raise ValueError(f"maxsize must be 0 (unbounded) or more, not {maxsize}")
    return maxsize


class _Line:
    """Waiters in the order of their arrival.  All methods want the queue's lock."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    def line_up(self, waiter: Waiter) -> None:
        """Add a waiter: at the end, or where it stood before it was woken in vain."""
        waiter.arm()
        waiter.lined_up = True
        waiter.place = self
        if not waiter.ticket:
            waiter.ticket = next(_tickets)
            self._waiters.append(waiter)
            return
        ahead = 0
        for other in self._waiters:
            if other.ticket > waiter.ticket:
                break
            ahead += 1
        self._waiters.insert(ahead, waiter)

    def call(self, number: int) -> list[Waiter]:
        """Take the first ``number`` waiters out of the line; the caller wakes them."""
        called = [self._waiters.popleft() for _ in range(min(number, len(self._waiters)))]
        for waiter in called:
            waiter.lined_up = False
        return called

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out of the line, wherever it stands."""
        waiter.lined_up = False
        self._waiters.remove(waiter)


class MixedQueue(Generic[T]):
    """A FIFO queue with a face for threads and a face for tasks, bounded by ``maxsize``.

    `sync_q` and `async_q` follow ``janus.SyncQueue`` and ``janus.AsyncQueue``: methods,
    ``shutdown`` and ``join``, and the exceptions (``janus.SyncQueueFull`` and the other
    five).  Beyond them: any number of asyncio and trio loops may use `async_q` at the
    same time, no loop is needed to create the queue or to use `sync_q`, and the queue
    has no task or thread of its own, so that there is nothing to wait for at its end.

    When full, ``put`` waits; when empty, ``get`` does.  Waiters are served in the order
    of their arrival; each freed slot wakes one putter and each item one getter.  An
    operation that need not wait may overtake those that were just woken.

    >>> queue = MixedQueue(maxsize=2)
    >>> queue.sync_q.put("a")
    >>> queue.sync_q.get()
    'a'

    Args:
        maxsize: The number of items that may wait; 0 is unbounded.

    Raises:
        TypeError: If ``maxsize`` is no integer.
        ValueError: If ``maxsize`` is negative.

    **Cancellation**: a cancelled ``get`` or ``put`` has taken or added nothing; a wake-up
    that was meant for it goes to the next in line.

    **Thread safety**: everything may be called from any thread and any task.
    `shutdown`, `close` and `aclose` may also be called from finalizers and signal handlers.
    After a fork the child has a copy of the items; nobody waits in it.
    """

    __slots__ = (
        "__weakref__",
        "_async_face",
        "_getters",
        "_is_closed",
        "_is_shutdown",
        "_items",
        "_joiners",
        "_lock",
        "_low",
        "_maxsize",
        "_putters",
        "_requests",
        "_sync_face",
        "_unfinished",
    )

    def __init__(self, maxsize: int = 0) -> None:
        self._maxsize = checked_maxsize(maxsize)
        self._low: int | None = None  # see `for_stream`
        self._items: deque[T] = deque()
        self._unfinished = 0  # items put and not yet declared done
        # Both flags are set without the lock, by `shutdown`, and never cleared.
        self._is_shutdown = False
        self._is_closed = False  # shut down, and what was waiting is dropped
        # Weak, or the queue and all in it would wait for the garbage collector.
        self._sync_face: Callable[[], _SyncFace[T] | None] = _nothing
        self._async_face: Callable[[], _AsyncFace[T] | None] = _nothing
        self._make_lock_and_lines()
        _queues.add(self)

    @classmethod
    def for_stream(cls, maxsize: int) -> MixedQueue[T]:
        """A queue that wakes its putters together, and only when it is half empty.

        Saves a change of threads for each item that is taken from a full queue.
        """
        queue = cls(maxsize)
        queue._low = queue._maxsize // 2
        return queue

    def _make_lock_and_lines(self) -> None:
        self._lock = threading.Lock()
        self._requests: deque[_Request] = deque()
        self._getters = _Line()
        self._putters = _Line()
        self._joiners = _Line()

    # -- the three attempts ---------------------------------------------------------------
    #
    # Each either does its work, or raises, or lines `waiter` up and answers _BLOCKED; with
    # no waiter, _BLOCKED changes nothing.

    def _try_get(self, waiter: Waiter | None, shut_down: type[Exception]) -> T | _Blocked:
        woken: Iterable[Waiter]
        try:
            with self._lock:
                if self._items and not self._is_closed:
                    item = self._items.popleft()
                    woken = self._putters_for_free_slot() if self._putters else ()
                elif self._is_shutdown:
                    raise shut_down
                else:
                    if waiter is not None:
                        self._getters.line_up(waiter)
                    return _BLOCKED
        finally:
            if self._requests:
                self._settle()
        for waiter in woken:  # noqa: PLR1704 - ours has done its duty
            self._wake(waiter)
        return item

    def _putters_for_free_slot(self) -> list[Waiter]:
        if self._low is None:
            return self._putters.call(1)
        if len(self._items) > self._low:
            return []
        return self._putters.call(self._maxsize - len(self._items))

    def _try_put(
        self, item: T, waiter: Waiter | None, shut_down: type[Exception]
    ) -> _Blocked | None:
        late: tuple[list[Waiter], list[object]] | None = None
        try:
            with self._lock:
                if self._requests:  # an end mark that was put before this item comes before it
                    late = self._carry_out()
                if self._is_shutdown:
                    raise shut_down
                if 0 < self._maxsize <= len(self._items):
                    if waiter is not None:
                        self._putters.line_up(waiter)
                    return _BLOCKED
                woken = self._append(item)
        finally:
            if late is not None:
                self._wake_from_anywhere(late[0])
            if self._requests:
                self._settle()
        for waiter in woken:  # noqa: PLR1704 - ours has done its duty
            self._wake(waiter)
        return None

    def _append(self, item: T) -> Iterable[Waiter]:
        self._items.append(item)
        self._unfinished += 1
        return self._getters.call(1) if self._getters else ()

    def _try_join(self, waiter: Waiter | None) -> _Blocked | None:
        try:
            with self._lock:
                if not self._unfinished:
                    return None
                if waiter is not None:
                    self._joiners.line_up(waiter)
                return _BLOCKED
        finally:
            if self._requests:
                self._settle()

    # -- waiting --------------------------------------------------------------------------

    def _wait_in_thread(
        self,
        attempt: Callable[[Waiter | None], R | _Blocked],
        timeout: float | None,
        gave_up: type[Exception],
    ) -> R:
        deadline = None if timeout is None else monotonic() + timeout
        waiter = ThreadWaiter()
        try:
            while (done := attempt(waiter)) is _BLOCKED:
                if not waiter.wait(None if deadline is None else deadline - monotonic()):
                    self._leave(waiter)
                    if (done := attempt(None)) is _BLOCKED:
                        raise gave_up
                    break
        except BaseException:
            self._leave(waiter)
            raise
        return done

    async def _wait_in_task(self, attempt: Callable[[Waiter | None], R | _Blocked]) -> R:
        waiter = async_waiter()
        try:
            while (done := attempt(waiter)) is _BLOCKED:
                await waiter.wait()
        except BaseException:  # cancelled, or GeneratorExit: dropped by the collector
            self._leave(waiter)
            raise
        return done

    def _leave(self, waiter: Waiter) -> None:
        """A waiter gives up.  If it had been woken, the wake-up is the next one's."""
        if waiter.place is not None:
            self._request(partial(self._replace, waiter))

    def _wake(self, waiter: Waiter) -> None:
        if not waiter.wake():
            self._leave(waiter)

    def _replace(self, waiter: Waiter, _: list[object]) -> list[Waiter]:
        line: _Line = waiter.place
        if waiter.lined_up:
            line.leave(waiter)
            return []
        return line.call(1) if self._is_worth_trying(line) else []

    def _is_worth_trying(self, line: _Line) -> bool:
        if self._is_shutdown and line is not self._joiners:
            return True
        if line is self._getters:
            return bool(self._items)
        if line is self._putters:
            return not 0 < self._maxsize <= len(self._items)
        return not self._unfinished

    # -- requests -------------------------------------------------------------------------

    def _request(self, request: _Request) -> None:
        """Have something done under the lock, now or as soon as its holder releases it."""
        self._requests.append(request)
        self._settle()

    def _settle(self) -> None:
        """Do what was requested, unless somebody holds the lock, who will do it then.

        The request is in the list before the lock is tried, and the holder looks into the
        list after releasing: one of the two sees the other.
        """
        while self._requests and self._lock.acquire(blocking=False):
            try:
                woken, _dropped = self._carry_out()  # dropped with this frame
            finally:
                self._lock.release()
            self._wake_from_anywhere(woken)

    def _carry_out(self) -> tuple[list[Waiter], list[object]]:
        """Do all requests, under the lock.  Whom to wake, and what to drop, after it."""
        woken: list[Waiter] = []
        dropped: list[object] = []
        while self._requests:
            woken += self._requests.popleft()(dropped)
        return woken, dropped

    def _wake_from_anywhere(self, woken: list[Waiter]) -> None:
        for waiter in woken:
            if not waiter.wake_from_anywhere():
                self._requests.append(partial(self._replace, waiter))

    def _wake_all_at_end(self, dropped: list[object]) -> list[Waiter]:
        woken = self._getters.call(len(self._getters)) + self._putters.call(len(self._putters))
        if self._is_closed:
            dropped.append(self._items)
            self._unfinished = max(0, self._unfinished - len(self._items))
            self._items = deque()
            if not self._unfinished:
                woken += self._joiners.call(len(self._joiners))
        return woken

    def _task_done(self) -> None:
        woken: Iterable[Waiter] = ()
        try:
            with self._lock:
                if self._unfinished <= 0:
                    raise ValueError("task_done() called too many times")
                self._unfinished -= 1
                if not self._unfinished:
                    woken = self._joiners.call(len(self._joiners))
        finally:
            if self._requests:
                self._settle()
        for waiter in woken:
            waiter.wake()

    # -- public ---------------------------------------------------------------------------

    @property
    def maxsize(self) -> int:
        """The number of items that may wait; 0 is unbounded."""
        return self._maxsize

    @property
    def closed(self) -> bool:
        """Whether the queue was shut down."""
        return self._is_shutdown

    @property
    def sync_q(self) -> janus.SyncQueue[T]:
        """The face for threads."""
        face = self._sync_face()
        if face is None:
            face = _SyncFace(self)
            self._sync_face = weakref.ref(face)
        return face

    @property
    def async_q(self) -> janus.AsyncQueue[T]:
        """The face for tasks, of any number of asyncio and trio loops."""
        face = self._async_face()
        if face is None:
            face = _AsyncFace(self)
            self._async_face = weakref.ref(face)
        return face

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue.  Idempotent; needs no free slot.

        From now on ``put`` raises ``SyncQueueShutDown`` or ``AsyncQueueShutDown``, and so
        does ``get`` once the queue is empty.  All waiters are woken.

        Args:
            immediate: Also drop what is waiting, each item counting as done, so that
                ``get`` raises at once.

        **Thread safety**: any thread or task, finalizers and signal handlers; never waits.
        """
        # The flags first: whoever has the lock next sees them, whoever does the rest.
        self._is_shutdown = True
        if immediate:
            self._is_closed = True
        self._request(self._wake_all_at_end)

    def close(self) -> None:
        """``shutdown(immediate=True)``."""
        self.shutdown(immediate=True)

    async def wait_closed(self) -> None:
        """Return once the queue is closed, which is at once.  Here for janus's sake.

        Raises:
            RuntimeError: If the queue was not shut down.

        **Cancellation**: a checkpoint.
        """
        if not self._is_shutdown:
            raise RuntimeError("Waiting for non-closed queue")
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """`close` and `wait_closed`.

        **Cancellation**: the queue is closed even if this is cancelled.
        """
        self.close()
        await self.wait_closed()

    def put_past_end(self, item: T) -> None:
        """Put an item whether there is a free slot or not; nothing happens after a shutdown.

        For streams only: an end mark needs no free slot.

        **Thread safety**: as `shutdown`; the item may be in the queue a moment later.
        """
        self._request(partial(self._append_anyway, item))

    def _append_anyway(self, item: T, _: list[object]) -> list[Waiter]:
        return [] if self._is_shutdown else list(self._append(item))


class _Face(Generic[T]):
    """What both faces have."""

    __slots__ = ("__weakref__", "_queue")

    def __init__(self, queue: MixedQueue[T]) -> None:
        self._queue = queue

    @property
    def maxsize(self) -> int:
        """The number of items that may wait; 0 is unbounded."""
        return self._queue._maxsize

    @property
    def closed(self) -> bool:
        """Whether the queue was shut down."""
        return self._queue._is_shutdown

    @property
    def unfinished_tasks(self) -> int:
        """The number of items put and not yet declared done."""
        return self._queue._unfinished

    def qsize(self) -> int:
        """The number of items that wait, at the moment of the call."""
        return len(self._queue._items)

    def empty(self) -> bool:
        """Whether nothing waits, at the moment of the call."""
        return not self._queue._items

    def full(self) -> bool:
        """Whether ``put`` would wait, at the moment of the call."""
        return 0 < self._queue._maxsize <= len(self._queue._items)

    def task_done(self) -> None:
        """Declare an item done that ``get`` returned.

        Raises:
            ValueError: If called more often than there were items.
        """
        self._queue._task_done()

    def shutdown(self, immediate: bool = False) -> None:
        """`MixedQueue.shutdown`."""
        self._queue.shutdown(immediate)


class _SyncFace(_Face[T], janus.SyncQueue[T]):
    """`MixedQueue.sync_q`."""

    __slots__ = ()

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item; when full, wait for a free slot.

        Args:
            item: The item.
            block: Whether to wait.
            timeout: Seconds to wait at most; forever if None.

        Raises:
            SyncQueueFull: If there is no free slot, at once or after ``timeout``.
            SyncQueueShutDown: If the queue was shut down, also while this waited.
            ValueError: If ``timeout`` is negative and the queue bounded.
        """
        queue = self._queue
        if block and timeout is not None and timeout < 0 < queue._maxsize:
            if queue._is_shutdown:
                raise SyncQueueShutDown
            raise ValueError("'timeout' must be a non-negative number")
        if queue._try_put(item, None, SyncQueueShutDown) is _BLOCKED:
            if not block:
                raise SyncQueueFull
            attempt = partial(queue._try_put, item, shut_down=SyncQueueShutDown)
            queue._wait_in_thread(attempt, timeout, SyncQueueFull)

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the first item; when empty, wait for one.

        Args:
            block: Whether to wait.
            timeout: Seconds to wait at most; forever if None.

        Raises:
            SyncQueueEmpty: If there is no item, at once or after ``timeout``.
            SyncQueueShutDown: If the queue was shut down and is empty, also while this waited.
            ValueError: If ``timeout`` is negative.
        """
        queue = self._queue
        if block and timeout is not None and timeout < 0:
            if queue._is_shutdown and not queue._items:
                raise SyncQueueShutDown
            raise ValueError("'timeout' must be a non-negative number")
        item = queue._try_get(None, SyncQueueShutDown)
        if item is _BLOCKED:
            if not block:
                raise SyncQueueEmpty
            attempt = partial(queue._try_get, shut_down=SyncQueueShutDown)
            return queue._wait_in_thread(attempt, timeout, SyncQueueEmpty)
        return item

    def put_nowait(self, item: T) -> None:
        """``put(item, block=False)``."""
        self.put(item, block=False)

    def get_nowait(self) -> T:
        """``get(block=False)``."""
        return self.get(block=False)

    def join(self) -> None:
        """Wait until each item that was put is declared done."""
        queue = self._queue
        if queue._try_join(None) is _BLOCKED:
            queue._wait_in_thread(queue._try_join, None, SyncQueueEmpty)


class _AsyncFace(_Face[T], janus.AsyncQueue[T]):
    """`MixedQueue.async_q`."""

    __slots__ = ()

    async def put(self, item: T) -> None:
        """Put an item; when full, wait for a free slot.

        Raises:
            AsyncQueueShutDown: If the queue was shut down, also while this waited.

        **Cancellation**: the item is not in the queue.  Without a need to wait, one in 64
        calls of a thread is a checkpoint.
        """
        if must_yield():
            await anyio.lowlevel.checkpoint()
        queue = self._queue
        if queue._try_put(item, None, AsyncQueueShutDown) is _BLOCKED:
            attempt = partial(queue._try_put, item, shut_down=AsyncQueueShutDown)
            await queue._wait_in_task(attempt)

    async def get(self) -> T:
        """Take the first item; when empty, wait for one.

        Raises:
            AsyncQueueShutDown: If the queue was shut down and is empty, also while this waited.

        **Cancellation**: no item is taken.  Without a need to wait, one in 64 calls of a
        thread is a checkpoint.
        """
        if must_yield():
            await anyio.lowlevel.checkpoint()
        queue = self._queue
        item = queue._try_get(None, AsyncQueueShutDown)
        if item is _BLOCKED:
            return await queue._wait_in_task(partial(queue._try_get, shut_down=AsyncQueueShutDown))
        return item

    def put_nowait(self, item: T) -> None:
        """Put an item without waiting.

        Raises:
            AsyncQueueFull: If there is no free slot.
            AsyncQueueShutDown: If the queue was shut down.
        """
        if self._queue._try_put(item, None, AsyncQueueShutDown) is _BLOCKED:
            raise AsyncQueueFull

    def get_nowait(self) -> T:
        """Take the first item without waiting.

        Raises:
            AsyncQueueEmpty: If there is none.
            AsyncQueueShutDown: If the queue was shut down and is empty.
        """
        item = self._queue._try_get(None, AsyncQueueShutDown)
        if item is _BLOCKED:
            raise AsyncQueueEmpty
        return item

    async def join(self) -> None:
        """Wait until each item that was put is declared done.

        **Cancellation**: changes nothing.
        """
        queue = self._queue
        if queue._try_join(None) is _BLOCKED:
            await queue._wait_in_task(queue._try_join)


_queues: weakref.WeakSet[MixedQueue[Any]] = weakref.WeakSet()


def _renew_in_child() -> None:
    # The lock may have been held, and the waiters are the parent's.
    for queue in list(_queues):
        queue._make_lock_and_lines()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
