"""Places to get and put from, each in a thread of its own, and a view of who waits there."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import janus
import pytest

from queuestream import _buffer
from tests.support.backends import ALL_BACKENDS, ASYNCIO, EAGER, TRIO, UVLOOP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Self

    from queuestream._buffer import _Line
    from queuestream.mixed_queue import MixedQueue

T = TypeVar("T")

WITHIN = 5.0
"""Seconds after which a test that hangs fails; nothing waits as long in one that passes."""

PLACES = [
    pytest.param("thread", id="thread"),
    *(pytest.param(backend.id, id=backend.id, marks=backend.marks) for backend in ALL_BACKENDS),
]
"""Parameters of a fixture."""
_LOOPS = {"asyncio": ASYNCIO, "uvloop": UVLOOP, "eager": EAGER, "trio": TRIO}
MIXED = ["thread", "asyncio", "trio", "thread", "uvloop", "trio", "asyncio"]
"""Places that stand in one line."""


class Place:
    """A plain thread, or an event loop in a thread: somewhere to get and put from."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stack = ExitStack()

    @property
    def is_async(self) -> bool:
        return self.name != "thread"

    def __enter__(self) -> Self:
        if self.is_async:
            backend, options = _LOOPS[self.name]
            self._portal = self._stack.enter_context(
                anyio.from_thread.start_blocking_portal(backend, options)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_async:
            self._portal.call(self._cancel_all)
        self._stack.close()

    async def _cancel_all(self) -> None:
        await self._portal.stop(cancel_remaining=True)

    def start(
        self,
        in_thread: Callable[[], T],
        in_task: Callable[[], Awaitable[T]],
    ) -> Future[T]:
        """Begin one thing here, in the way of this place."""
        if self.is_async:
            return self._portal.start_task_soon(in_task)
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(in_thread())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def get(self, queue: MixedQueue[T]) -> Future[T]:
        return self.start(queue.sync_q.get, queue.async_q.get)

    def put(self, queue: MixedQueue[T], item: T) -> Future[None]:
        return self.start(lambda: queue.sync_q.put(item), lambda: queue.async_q.put(item))

    def join(self, queue: MixedQueue[Any]) -> Future[None]:
        return self.start(queue.sync_q.join, queue.async_q.join)

    def face(self, queue: MixedQueue[T]) -> janus.AsyncQueue[T] | janus.SyncQueue[T]:
        return queue.async_q if self.is_async else queue.sync_q

    @property
    def shut_down(self) -> type[Exception]:
        return janus.AsyncQueueShutDown if self.is_async else janus.SyncQueueShutDown

    @property
    def empty(self) -> type[Exception]:
        return janus.AsyncQueueEmpty if self.is_async else janus.SyncQueueEmpty

    @property
    def full(self) -> type[Exception]:
        return janus.AsyncQueueFull if self.is_async else janus.SyncQueueFull


class Lines:
    """Sees who lines up.  Whoever does is as good as asleep: from then on it is to be woken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        line_up = _buffer._Line.line_up

        def line_up_and_tell(line: _Line, waiter: Any) -> None:
            line_up(line, waiter)
            with self._changed:
                self._changed.notify_all()

        monkeypatch.setattr(_buffer._Line, "line_up", line_up_and_tell)

    def wait_for(self, line: _Line, count: int) -> None:
        """Block the thread until so many stand in a line."""
        with self._changed:
            reached = self._changed.wait_for(lambda: len(line) >= count, WITHIN)
        assert reached, f"{len(line)} of {count} lined up"

    def wait_for_getters(self, queue: MixedQueue[Any], count: int = 1) -> None:
        self.wait_for(queue._buffer._getters, count)

    def wait_for_putters(self, queue: MixedQueue[Any], count: int = 1) -> None:
        self.wait_for(queue._buffer._putters, count)

    def wait_for_joiners(self, queue: MixedQueue[Any], count: int = 1) -> None:
        self.wait_for(queue._buffer._joiners, count)


async def lined_up(line: _Line, count: int = 1) -> None:
    """Let this loop's other tasks run until so many stand in a line."""
    for _ in range(1_000):
        if len(line) >= count:
            return
        await anyio.lowlevel.checkpoint()
    raise AssertionError(f"{len(line)} of {count} lined up")
