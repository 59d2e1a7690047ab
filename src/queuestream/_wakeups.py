"""Wake one waiter: a thread, an asyncio task or a trio task.  Nothing else wakes anyone.

A waiter is made by whoever is about to wait, armed, shown to others (under their lock),
and waited on.  Whoever has news for it takes it out of sight first, so that it is woken
once for each arming, and then calls `wake`, outside of every lock.  ``wake`` never
blocks, runs no user code, and tells whether the wake-up can still arrive: ``False``
means that the waiter's loop is gone, and the caller gives the news to the next in line.

=========  =========================  ==============================================
waiter     sleeps on                  is woken by
=========  =========================  ==============================================
thread     a raw lock, held           releasing the lock
asyncio    itself, as a future        on the loop's own thread as futures are, elsewhere
                                      the loop's doorbell
trio       a ``trio.Event``           the doorbell
=========  =========================  ==============================================
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from queuestream._doorbell import bell_of
from queuestream._turns import begin_turn, loop_of_task, running_asyncio_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = [
    "AsyncWaiter",
    "Latch",
    "ThreadWaiter",
    "Waiter",
    "async_waiter",
    "current_loop",
]


class Waiter:
    """Somebody who waits.  ``ticket`` and ``place`` belong to the line that it waits in.

    Attributes:
        ticket: The waiter's age, given when it first lines up; 0 before that.
        place: The line that it stands in, or stood in when it was last woken.
        lined_up: Whether it stands in that line now.
    """

    __slots__ = ("lined_up", "place", "ticket")

    ticket: int
    place: Any
    lined_up: bool

    def __init__(self) -> None:
        self.ticket = 0
        self.place = None
        self.lined_up = False

    def arm(self) -> None:
        """Get ready for one wake-up."""
        raise NotImplementedError  # pragma: no cover - abstract

    def wake(self) -> bool:
        """Wake it; false if its loop is gone.  Any thread, no lock held."""
        raise NotImplementedError  # pragma: no cover - abstract

    def wake_from_anywhere(self) -> bool:
        """Like `wake`, also right in a signal handler that interrupted the waiter's own loop."""
        return self.wake()


class ThreadWaiter(Waiter):
    """A thread asleep on a lock that is always held: a release wakes it and is used up."""

    __slots__ = ("_gate",)

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Lock()
        self._gate.acquire()

    def arm(self) -> None:
        """Nothing to do: the gate closed again behind the last wake-up."""

    def wake(self) -> bool:
        with contextlib.suppress(RuntimeError):  # woken already
            self._gate.release()
        return True

    def wait(self, timeout: float | None) -> bool:
        """Sleep until woken, at most ``timeout`` seconds; whether it was woken."""
        if timeout is None:
            return self._gate.acquire()
        return self._gate.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))


class AsyncWaiter(Waiter):
    """A task asleep on its loop.

    Attributes:
        on_lost: Called with the waiter if its loop was closed after `wake` promised that
            the wake-up can arrive.  Any thread, also in a finalizer; must not wait.
    """

    __slots__ = ("on_lost",)

    on_lost: Callable[[AsyncWaiter], object] | None

    def __init__(self) -> None:
        super().__init__()
        self.on_lost = None

    def open_now(self) -> None:
        """Let `wait` return.  In a callback of the waiter's own loop."""
        raise NotImplementedError  # pragma: no cover - abstract

    def wait(self) -> Awaitable[None]:
        """Sleep until woken.

        **Cancellation**: may come together with the wake-up; whoever is cancelled here
        has to pass on the news that it may have been woken for.
        """
        raise NotImplementedError  # pragma: no cover - abstract


class _AsyncioWaiter(AsyncWaiter):
    """A future, by the protocol with which a task waits for one; of one task.

    asyncio's own calls its callbacks one turn of the loop after its result.  The answer of a
    doorbell is a call from the loop itself, and may go on with the task at once.  That
    saves a third of what a wake-up from another thread costs.
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_bell",
        "_callback",
        "_cancelled",
        "_context",
        "_loop",
        "_opened",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._bell = bell_of(loop)
        self._asyncio_future_blocking = False
        self._opened = False
        self._cancelled: tuple[object, ...] | None = None
        # What the task wants to be called when this is done, and in which context.
        self._callback: Callable[[object], object] | None = None
        self._context: contextvars.Context | None = None

    def arm(self) -> None:
        self._opened = False

    def wake(self) -> bool:
        if running_asyncio_loop() is self._loop:
            self._open()
            return True
        return self._bell.ring(self)

    def wake_from_anywhere(self) -> bool:
        # A signal handler may have interrupted this very loop in its select(), and a
        # result that is set there does not end the select().
        return self._bell.ring(self)

    def _open(self) -> None:
        if not self.done():
            self._opened = True
            self._call_soon()

    def _call_soon(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            self._loop.call_soon(callback, self, context=self._context)

    def open_now(self) -> None:
        if asyncio.current_task(self._loop) is not None:  # somebody runs the loop in a task
            self._open()
        elif not self.done():
            self._opened = True
            callback, self._callback = self._callback, None
            if callback is not None:
                assert self._context is not None
                self._context.run(callback, self)

    def wait(self) -> Awaitable[None]:
        return self

    # What a task asks of a future that it waits for.

    def __await__(self) -> Generator[Any, None, None]:
        if not self._opened:
            self._asyncio_future_blocking = True
            yield self
            begin_turn()
        self.result()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(
        self, callback: Callable[[object], object], *, context: contextvars.Context | None = None
    ) -> None:
        self._callback = callback
        self._context = contextvars.copy_context() if context is None else context
        if self.done():
            self._call_soon()

    def done(self) -> bool:
        return self._opened or self._cancelled is not None

    def result(self) -> None:
        if self._cancelled is not None:
            raise asyncio.CancelledError(*self._cancelled)

    def cancel(self, msg: object = None) -> bool:
        if self.done():
            return False
        self._cancelled = () if msg is None else (msg,)
        self._call_soon()
        return True


class _TrioWaiter(AsyncWaiter):
    __slots__ = ("_bell", "_event")

    def __init__(self, token: object) -> None:
        super().__init__()
        self._bell = bell_of(token)
        self._event: anyio.Event

    def arm(self) -> None:
        self._event = anyio.Event()

    def wake(self) -> bool:
        return self._bell.ring(self)

    def open_now(self) -> None:
        self._event.set()

    def wait(self) -> Awaitable[None]:
        return self._event.wait()


def current_loop() -> object | None:
    """The asyncio loop or trio token that runs in this thread, if any."""
    try:
        return anyio.lowlevel.current_token().native_token
    except RuntimeError:  # anyio's NoEventLoopError, and sniffio's and trio's of old
        return None


def async_waiter(used: AsyncWaiter | None = None) -> AsyncWaiter:
    """A waiter for the running task.

    Args:
        used: One whose last wake-up has arrived; it serves again, if it is of this loop.

    Raises:
        RuntimeError: If neither asyncio nor trio runs in this thread.
    """
    if (asyncio_loop := loop_of_task()) is not None:
        if type(used) is _AsyncioWaiter and used.get_loop() is asyncio_loop:
            used.ticket = 0
            return used
        return _AsyncioWaiter(asyncio_loop)
    loop = anyio.lowlevel.current_token().native_token
    if isinstance(loop, asyncio.AbstractEventLoop):
        return _AsyncioWaiter(loop)
    return _TrioWaiter(loop)


class Latch:
    """Set once, from any thread; any number of tasks wait for it."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Waiter] = []  # smaller than a deque, and there are few

    def set(self) -> None:
        """Set it and wake all.  Idempotent, never blocks."""
        self._set = True
        while self._waiters:
            try:
                waiter = self._waiters.pop(0)
            except IndexError:  # another setter took it
                break
            waiter.wake_from_anywhere()

    async def wait(self) -> None:
        """Wait until it is set.

        **Cancellation**: leaves nothing behind.
        """
        if self._set:
            return
        waiter = async_waiter()
        waiter.arm()
        # First in sight, then the look: `set` does it the other way round.
        self._waiters.append(waiter)
        try:
            if not self._set:
                await waiter.wait()
        finally:
            try:
                self._waiters.remove(waiter)
            except ValueError:  # whoever set it took it
                pass
