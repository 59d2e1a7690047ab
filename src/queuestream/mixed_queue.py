"""`MixedQueue`: one buffer with a face for threads and a face for tasks.

The faces follow janus's protocols and raise janus's exceptions; all that happens, happens
in `Buffer`.  They are used by streams, too, over buffers of their own.
"""

from __future__ import annotations

from functools import partial
from typing import Generic, TypeVar

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

from queuestream._buffer import BLOCKED, Buffer
from queuestream._turns import end_turn, must_yield

__all__ = ["AsyncFace", "MixedQueue", "SyncFace"]

T = TypeVar("T")


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

    __slots__ = ("__weakref__", "_async_face", "_buffer", "_sync_face")

    def __init__(self, maxsize: int = 0) -> None:
        self._buffer: Buffer[T] = Buffer(maxsize)
        self._sync_face = SyncFace(self._buffer)
        self._async_face = AsyncFace(self._buffer)

    @property
    def maxsize(self) -> int:
        """The number of items that may wait; 0 is unbounded."""
        return self._buffer.maxsize

    @property
    def closed(self) -> bool:
        """Whether the queue was shut down."""
        return self._buffer.is_shutdown

    @property
    def sync_q(self) -> janus.SyncQueue[T]:
        """The face for threads."""
        return self._sync_face

    @property
    def async_q(self) -> janus.AsyncQueue[T]:
        """The face for tasks, of any number of asyncio and trio loops."""
        return self._async_face

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue.  Idempotent; needs no free slot.

        From now on ``put`` raises ``SyncQueueShutDown`` or ``AsyncQueueShutDown``, and so
        does ``get`` once the queue is empty.  All waiters are woken.

        Args:
            immediate: Also drop what is waiting, each item counting as done, so that
                ``get`` raises at once.

        **Thread safety**: any thread or task, finalizers and signal handlers; never waits.
        """
        self._buffer.shutdown(immediate=immediate)

    def close(self) -> None:
        """``shutdown(immediate=True)``."""
        self.shutdown(immediate=True)

    async def wait_closed(self) -> None:
        """Return once the queue is closed, which is at once.  Here for janus's sake.

        Raises:
            RuntimeError: If the queue was not shut down.

        **Cancellation**: a checkpoint.
        """
        if not self._buffer.is_shutdown:
            raise RuntimeError("Waiting for non-closed queue")
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """`close` and `wait_closed`.

        **Cancellation**: the queue is closed even if this is cancelled.
        """
        self.close()
        await self.wait_closed()


class _Face(Generic[T]):
    """What both faces have."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Buffer[T]) -> None:
        self.buffer: Buffer[T] = buffer

    @property
    def maxsize(self) -> int:
        """The number of items that may wait; 0 is unbounded."""
        return self.buffer.maxsize

    @property
    def closed(self) -> bool:
        """Whether the queue was shut down."""
        return self.buffer.is_shutdown

    @property
    def unfinished_tasks(self) -> int:
        """The number of items put and not yet declared done."""
        return self.buffer.unfinished

    def qsize(self) -> int:
        """The number of items that wait, at the moment of the call."""
        # What an immediate shutdown drops may be there a moment longer, see `Buffer.shutdown`.
        return 0 if self.buffer.is_closed else len(self.buffer.items)

    def empty(self) -> bool:
        """Whether nothing waits, at the moment of the call."""
        return not self.qsize()

    def full(self) -> bool:
        """Whether ``put`` would wait, at the moment of the call."""
        return 0 < self.buffer.maxsize <= self.qsize()

    def task_done(self) -> None:
        """Declare an item done that ``get`` returned.

        Raises:
            ValueError: If called more often than there were items.
        """
        self.buffer.task_done()

    def shutdown(self, immediate: bool = False) -> None:
        """`MixedQueue.shutdown`."""
        self.buffer.shutdown(immediate=immediate)


class SyncFace(_Face[T], janus.SyncQueue[T]):
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
        buffer = self.buffer
        if block and timeout is not None and timeout < 0 < buffer.maxsize:
            if buffer.is_shutdown:
                raise SyncQueueShutDown
            raise ValueError("'timeout' must be a non-negative number")
        if buffer.put_now(item):
            return
        if buffer.try_put(item, None, SyncQueueShutDown) is BLOCKED:
            if not block:
                raise SyncQueueFull
            attempt = partial(buffer.try_put, item, shut_down=SyncQueueShutDown)
            buffer.wait_in_thread(attempt, timeout, SyncQueueFull)

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
        buffer = self.buffer
        if block and timeout is not None and timeout < 0:
            if buffer.is_shutdown and not buffer.items:
                raise SyncQueueShutDown
            raise ValueError("'timeout' must be a non-negative number")
        if (item := buffer.get_now()) is not BLOCKED:
            return item
        try:
            item = buffer.try_get(None, SyncQueueShutDown)
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C
                buffer.wake_putters_anyway()
            raise
        if item is BLOCKED:
            if not block:
                raise SyncQueueEmpty
            attempt = partial(buffer.try_get, shut_down=SyncQueueShutDown)
            return buffer.wait_in_thread(attempt, timeout, SyncQueueEmpty)
        return item

    def put_nowait(self, item: T) -> None:
        """``put(item, block=False)``."""
        self.put(item, block=False)

    def get_nowait(self) -> T:
        """``get(block=False)``."""
        return self.get(block=False)

    def join(self) -> None:
        """Wait until each item that was put is declared done."""
        buffer = self.buffer
        if buffer.try_join(None) is BLOCKED:
            buffer.wait_in_thread(buffer.try_join, None, SyncQueueEmpty)


class AsyncFace(_Face[T], janus.AsyncQueue[T]):
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
            await end_turn()
        buffer = self.buffer
        if not buffer.put_now(item):
            attempt = partial(buffer.try_put, item, shut_down=AsyncQueueShutDown)
            await buffer.wait_in_task(attempt)

    async def get(self) -> T:
        """Take the first item; when empty, wait for one.

        Raises:
            AsyncQueueShutDown: If the queue was shut down and is empty, also while this waited.

        **Cancellation**: no item is taken.  Without a need to wait, one in 64 calls of a
        thread is a checkpoint.
        """
        if must_yield():
            await end_turn()
        buffer = self.buffer
        if (item := buffer.get_now()) is not BLOCKED:
            return item
        return await buffer.wait_in_task(partial(buffer.try_get, shut_down=AsyncQueueShutDown))

    def put_nowait(self, item: T) -> None:
        """Put an item without waiting.

        Raises:
            AsyncQueueFull: If there is no free slot.
            AsyncQueueShutDown: If the queue was shut down.
        """
        if self.buffer.try_put(item, None, AsyncQueueShutDown) is BLOCKED:
            raise AsyncQueueFull

    def get_nowait(self) -> T:
        """Take the first item without waiting.

        Raises:
            AsyncQueueEmpty: If there is none.
            AsyncQueueShutDown: If the queue was shut down and is empty.
        """
        item = self.buffer.try_get(None, AsyncQueueShutDown)
        if item is BLOCKED:
            raise AsyncQueueEmpty
        return item

    async def join(self) -> None:
        """Wait until each item that was put is declared done.

        **Cancellation**: changes nothing.
        """
        buffer = self.buffer
        if buffer.try_join(None) is BLOCKED:
            await buffer.wait_in_task(buffer.try_join)
