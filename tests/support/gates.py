"""Forcing a schedule: permits that a test grants, and the one place that polls.

A model or server of these tests does nothing until the test lets it, so that a test
never has to sleep in the hope that something has happened meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gate", "eventually", "eventually_async", "open_all_gates"]

_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


class Gate:
    """Permits: a producer takes one for each step, a test grants them.

    `wait` blocks a thread, `wait_async` suspends an asyncio task and can be cancelled.
    All methods can be called from any thread.
    """

    def __init__(self, permits: int = 0) -> None:
        self._lock = threading.Lock()
        self._permits = permits
        self._is_open = False
        self._waiters: deque[Future[None]] = deque()
        _gates.add(self)

    @property
    def waiting(self) -> int:
        """How many producers wait for a permit now."""
        with self._lock:
            return sum(not waiter.done() for waiter in self._waiters)

    def release(self, permits: int = 1) -> None:
        """Let that many steps happen."""
        with self._lock:
            self._permits += permits
            granted = self._granted_locked()
        _wake(granted)

    def open(self) -> None:
        """Let everything through from now on."""
        with self._lock:
            self._is_open = True
            granted = self._granted_locked()
        _wake(granted)

    def wait(self) -> None:
        """Take a permit; block the thread until there is one."""
        self._ticket().result()

    async def wait_async(self) -> None:
        """Take a permit; suspend the asyncio task until there is one."""
        ticket = self._ticket()
        if not ticket.done():
            await asyncio.wrap_future(ticket)

    def _ticket(self) -> Future[None]:
        ticket: Future[None] = Future()
        with self._lock:
            self._waiters.append(ticket)
            granted = self._granted_locked()
        _wake(granted)
        return ticket

    def _granted_locked(self) -> list[Future[None]]:
        granted: list[Future[None]] = []
        while self._waiters and (self._is_open or self._permits):
            waiter = self._waiters.popleft()
            if waiter.set_running_or_notify_cancel():
                if not self._is_open:
                    self._permits -= 1
                granted.append(waiter)
        return granted


def _wake(granted: list[Future[None]]) -> None:
    for waiter in granted:
        waiter.set_result(None)


def open_all_gates() -> None:
    """Free whatever a test has left waiting, so that no thread outlives it."""
    for gate in list(_gates):
        gate.open()


def eventually(condition: Callable[[], object], within: float = 5.0) -> None:
    """Return as soon as `condition()` is true; fail after `within` seconds.

    Only for what cannot be hooked.  It is no way to see that something does *not* happen.
    """
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, _complaint(condition, within)
        time.sleep(0.0005)


async def eventually_async(condition: Callable[[], object], within: float = 5.0) -> None:
    """Do what `eventually` does, and let the event loop run meanwhile."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, _complaint(condition, within)
        await anyio.sleep(0.0005)


def _complaint(condition: Callable[[], object], within: float) -> str:
    code = getattr(condition, "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(condition)
    return f"not within {within} s: the condition at {where}"
