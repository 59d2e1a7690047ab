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

A *doorbell* joins the wake-ups for one loop: whoever finds it silent rings it, with one
``call_soon_threadsafe`` (a system call), and all that is wanted until the loop answers
is done in that one answer.  It has no lock, because a finalizer or a signal handler may
ring it in the middle of another ring on the same thread.  A loop that is closed before it
answers drops the answer, and those who were to be woken are *lost*: whoever lined them up
hears of it, and gives the news to the next in line.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = [
    "TURN",
    "AsyncWaiter",
    "Latch",
    "ThreadWaiter",
    "Waiter",
    "async_waiter",
    "current_loop",
    "end_turn",
    "must_yield",
    "running_asyncio_loop",
]

running_asyncio_loop = asyncio._get_running_loop  # noqa: SLF001 - asyncio exports it
"""The asyncio loop that runs in this thread, or None.  Cheaper than an exception."""

TURN = 64
"""Async operations that one thread may complete without waiting before it lets the
loop's other tasks run.  A turn of the loop costs about as much as ten such operations."""


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

    on_lost: Callable[[Waiter], object] | None

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


class _Doorbell:
    """The one way into a loop from elsewhere.

    The order of two steps decides that nothing is missed.  Ringing appends the wish and
    then looks whether the bell is rung; answering first declares it silent and then takes
    wishes until there are none.  The deque's own atomicity orders the two: if the
    answer's last look came before the append, the ringer sees a silent bell and rings.
    Two ringers at once may both find it silent; the second answer finds nothing.
    """

    __slots__ = ("_is_asyncio", "_loop", "_rung", "_wishes")

    def __init__(self, loop: Any) -> None:
        self._loop = weakref.ref(loop)  # the bell of a thread outlives the loop
        # Asked once: an abstract class takes four calls to say it.
        self._is_asyncio = isinstance(loop, asyncio.AbstractEventLoop)
        self._wishes: deque[AsyncWaiter] = deque()
        self._rung = False

    def belongs_to(self, loop: object) -> bool:
        return self._loop() is loop

    def ring(self, waiter: AsyncWaiter) -> bool:
        """Have a waiter opened on its loop; false if that is gone."""
        loop = self._loop()
        if loop is None:
            return False
        self._wishes.append(waiter)
        if self._rung:
            return True
        answer = _Answer(self)
        try:
            self._rung = True
            try:
                has_heard = self._call(loop, answer)
            except RuntimeError:  # closed
                has_heard = False
            if has_heard:
                return True
            self._wishes.remove(waiter)
        except ValueError:  # another thread took it, and calls it lost
            return True
        except BaseException:
            # Interrupted, perhaps before the loop heard it; then nobody would ring again.
            # A second answer finds nothing.
            self._call(loop, answer)
            raise
        answer.lose()
        return False

    def _call(self, loop: Any, answer: _Answer) -> bool:
        if self._is_asyncio:
            loop.call_soon_threadsafe(answer)
            return not loop.is_closed()  # else, closed while we called, it may keep the answer
        loop.run_sync_soon(answer)
        return True

    def answer(self) -> None:
        self._rung = False
        # Those who come later find the bell silent, and ring again: each answer has an end.
        left = len(self._wishes)
        try:
            while left:
                left -= 1
                self._wishes.popleft().open_now()
        except IndexError:  # another thread took it, and calls it lost
            pass
        except BaseException:  # a task raised SystemExit, say
            if left and (loop := self._loop()) is not None:
                self._call(loop, _Answer(self))
            raise

    def lose(self) -> None:
        """There will be no answer."""
        self._rung = False
        while True:
            try:
                waiter = self._wishes.popleft()
            except IndexError:
                return
            if waiter.on_lost is not None:
                waiter.on_lost(waiter)


class _Answer:
    """What a loop holds of a bell that was rung: called by it once, or dropped uncalled."""

    __slots__ = ("_bell",)

    def __init__(self, bell: _Doorbell) -> None:
        self._bell: _Doorbell | None = bell

    def __call__(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.answer()

    def lose(self) -> None:
        bell = getattr(self, "_bell", None)  # it may have been interrupted when it was made
        self._bell = None
        if bell is not None:
            bell.lose()

    def __del__(self) -> None:
        self.lose()


class _Turn:
    """What is left of a thread's turn.  An object, because a thread's variables are slow."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = TURN


class _Here(threading.local):
    """What belongs to this thread: its loop's doorbell, and what is left of its turn.

    A thread runs one loop at a time.  Where two alternate (trio as asyncio's guest), each
    change makes a new bell; the old one still works for those who hold it.
    """

    bell: _Doorbell | None = None

    def __init__(self) -> None:
        self.turn = _Turn()

    def bell_of(self, loop: object) -> _Doorbell:
        bell = self.bell
        if bell is None or not bell.belongs_to(loop):
            bell = self.bell = _Doorbell(loop)
        return bell


_here = _Here()


def _forget_bell_in_child() -> None:
    _here.bell = None  # it may be rung, for a loop that did not come along


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_bell_in_child)


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
        self._bell = _here.bell_of(loop)
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
            turn = _here.turn
            if turn.left > 0:  # else somebody is about to end it, see `must_yield`
                turn.left = TURN + 1  # so many puts as waited to be got, and one more that waits
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
        self._bell = _here.bell_of(token)
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


def _loop_of_asyncio_task() -> asyncio.AbstractEventLoop | None:
    """The loop, if the caller is a task of asyncio.

    To ask anyio would cost as much as all the rest of a wait.  Where trio is asyncio's guest,
    the loop runs, and no task of it.
    """
    loop = running_asyncio_loop()
    return None if loop is None or asyncio.current_task(loop) is None else loop


def async_waiter(used: AsyncWaiter | None = None) -> AsyncWaiter:
    """A waiter for the running task.

    Args:
        used: One whose last wake-up has arrived; it serves again, if it is of this loop.

    Raises:
        RuntimeError: If neither asyncio nor trio runs in this thread.
    """
    if (asyncio_loop := _loop_of_asyncio_task()) is not None:
        if type(used) is _AsyncioWaiter and used.get_loop() is asyncio_loop:
            used.ticket = 0
            return used
        return _AsyncioWaiter(asyncio_loop)
    loop = anyio.lowlevel.current_token().native_token
    if isinstance(loop, asyncio.AbstractEventLoop):
        return _AsyncioWaiter(loop)
    return _TrioWaiter(loop)


def must_yield() -> bool:
    """Count one async operation that does not wait; whether this thread's turn is over.

    Whoever must yield does so with `end_turn`.  Until that is done so must everybody else,
    or the next task would overtake the one that yields.
    """
    turn = _here.turn
    turn.left -= 1
    return turn.left <= 0


async def end_turn() -> None:
    """Let the loop's other tasks run."""
    if _loop_of_asyncio_task() is None:
        await anyio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)
    _here.turn.left = TURN


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
