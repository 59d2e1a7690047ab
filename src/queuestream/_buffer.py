"""The bounded buffer between threads and tasks.  Nothing else guards one.

One lock, one deque of items, and three lines of waiters: getters, putters, joiners.
`MixedQueue`'s two faces do the same three things with them, each in one critical
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

import contextlib
import itertools
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from queuestream._wakeups import AsyncWaiter, ThreadWaiter, async_waiter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from queuestream._wakeups import Waiter

__all__ = ["BLOCKED", "Blocked", "Buffer", "Stale", "checked_maxsize", "members"]

T = TypeVar("T")
R = TypeVar("R")


class Blocked(Enum):
    """See `BLOCKED`."""

    BLOCKED = "blocked"


BLOCKED: Final = Blocked.BLOCKED
"""What an attempt answers that has to wait."""


class Stale(Exception):  # noqa: N818 - an answer, not an error
    """An item was not put, because nobody is to have it any more."""


_IS_ORDERED: Final[bool] = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether all threads see the changes of a deque and of a list in the same order.

So with the interpreter's lock.  Without it a change is atomic, but another thread may see two
of them the other way round.
"""

_Request = Callable[[list[object]], "list[Waiter]"]
"""Something to do under the lock.  It answers whom to wake after the lock is released,
and adds to its argument what must not be dropped before that."""

_tickets = itertools.count(1)


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


def members(of: Iterable[T]) -> list[T]:
    """What is in a weak set now, or the keys in a weak dictionary.

    Another thread, or the collector, may change it meanwhile.
    """
    while True:
        with contextlib.suppress(RuntimeError):
            return list(of)


class _Line:
    """Waiters in the order of their arrival.  All methods want the queue's lock.

    Attributes:
        waiters: Those that stand in the line.
    """

    __slots__ = ("_called", "waiters")

    def __init__(self) -> None:
        self.waiters: list[Waiter] = []  # an empty deque takes 0.7 KiB, for each of three
        # Taken out and not seen since.  Whoever was to wake them may have been interrupted by
        # Ctrl-C, so the shutdown wakes them once more.
        self._called: dict[Waiter, None] = {}

    def __len__(self) -> int:
        return len(self.waiters)

    def line_up(self, waiter: Waiter) -> None:
        """Add a waiter: at the end, or where it stood before it was woken in vain."""
        waiter.arm()
        if waiter.lined_up:  # it was woken twice
            return
        waiter.lined_up = True
        waiter.place = self
        if not waiter.ticket:
            waiter.ticket = next(_tickets)
            self.waiters.append(waiter)
            return
        self._called.pop(waiter, None)
        ahead = 0
        for other in self.waiters:
            if other.ticket > waiter.ticket:
                break
            ahead += 1
        self.waiters.insert(ahead, waiter)

    def call(self, number: int) -> list[Waiter]:
        """Take the first ``number`` waiters out of the line; the caller wakes them."""
        waiters = self.waiters
        called = waiters[:number]
        # In this order: Ctrl-C leaves nobody out of both, so that `call_all` finds them.
        self._called.update(dict.fromkeys(called))
        for waiter in called:
            waiter.lined_up = False
        del waiters[:number]
        return called

    def call_all(self) -> list[Waiter]:
        """Call everybody, also those who were called and have not come."""
        return [*self._called, *self.call(len(self.waiters))]

    def arrive(self, waiter: Waiter) -> None:
        """A waiter that was called has come, and got what it wanted."""
        if waiter.lined_up:  # it was woken twice
            self.leave(waiter)
        else:
            self._called.pop(waiter, None)

    def leave(self, waiter: Waiter) -> bool:
        """A waiter gives up, wherever it stands; whether it stood in the line."""
        self._called.pop(waiter, None)
        if not waiter.lined_up:
            return False
        waiter.lined_up = False
        with contextlib.suppress(ValueError):  # interrupted when it lined up
            self.waiters.remove(waiter)
        return True


class Buffer(Generic[T]):
    """Items, the lock over them, and three lines of waiters.

    Args:
        maxsize: The number of items that may wait; 0 is unbounded.
        low: Wake the putters together, and only when no more than this many items wait.
            Saves a change of threads for each item that is taken from a full buffer.  If
            None, each freed slot wakes one putter.
        join: Tried when there is no free slot: joins an item to one of those that wait and
            answers whether it could.  Called under the lock.

    Attributes:
        maxsize: As given.
        items: What waits.
        peak: The most items that waited at once.
        unfinished: The number of items that were put and are not declared done.
        held: The number of items that were taken and whose slots are not free yet.
        is_shutdown: Whether nothing may be put any more.
        is_closed: Whether, moreover, what was waiting is dropped.
    """

    __slots__ = (
        "__weakref__",
        "_getters",
        "_holds",
        "_join",
        "_joiners",
        "_limit",
        "_lock",
        "_low",
        "_needs_lock",
        "_putters",
        "_requests",
        "held",
        "is_closed",
        "is_shutdown",
        "items",
        "maxsize",
        "peak",
        "unfinished",
    )

    def __init__(
        self,
        maxsize: int,
        low: int | None = None,
        join: Callable[[deque[T], T], bool] | None = None,
    ) -> None:
        self.maxsize: int = checked_maxsize(maxsize)
        # How many items may wait now: less than maxsize while some that were taken are held.
        self._limit: float = maxsize or inf
        self._holds = False
        self.held: int = 0
        self._low = low
        self._join = join
        # Joining changes items while they wait.
        self._needs_lock = join is not None or not _IS_ORDERED
        self.items: deque[T] = deque()
        self.peak: int = 0
        self.unfinished: int = 0
        # Both flags are set without the lock, by `shutdown`, and never cleared.
        self.is_shutdown: bool = False
        self.is_closed: bool = False
        self.make_lock_and_lines()
        _buffers.add(self)

    def make_lock_and_lines(self) -> None:
        """Begin with nobody waiting: at first, and in a forked child."""
        self._lock = threading.Lock()
        self._requests: list[_Request] = []
        self._getters = _Line()
        self._putters = _Line()
        self._joiners = _Line()

    # -- the three attempts ---------------------------------------------------------------
    #
    # Each either does its work, or raises `shut_down`, or lines `waiter` up and answers
    # BLOCKED; with no waiter, BLOCKED changes nothing.

    def try_get(self, waiter: Waiter | None, shut_down: type[Exception]) -> T | Blocked:
        """Take the first item."""
        woken: Iterable[Waiter]
        late: tuple[list[Waiter], list[object]] | None = None
        try:
            with self._lock:
                has_ended = self.is_shutdown
                if has_ended and self._requests:  # what was put past the end, before the end
                    late = self._carry_out()
                item = BLOCKED if self.is_closed else self._pop()
                if item is not BLOCKED:
                    if waiter is not None:
                        self._getters.arrive(waiter)
                    woken = self._putters_for_free_slot() if self._putters.waiters else ()
                elif has_ended:
                    raise shut_down
                else:
                    if waiter is not None:
                        self._getters.line_up(waiter)
                    return BLOCKED
        finally:
            if late is not None:
                self._wake_from_anywhere(late[0])
            if self._requests:
                self._settle()
        for one in woken:
            self._wake(one)
        return item

    def _pop(self) -> T | Blocked:
        try:
            item = self.items.popleft()
        except IndexError:  # also where there was one a moment ago, see `get_now`
            return BLOCKED
        if self._holds:
            self.held += 1
            self._limit -= 1
        return item

    def _putters_for_free_slot(self) -> list[Waiter]:
        if self._low is None:
            return self._putters.call(0 if self._is_full() else 1)
        if len(self.items) > self._low:
            return []
        return self._putters.call(max(0, self.maxsize - len(self.items) - self.held))

    def try_put(
        self,
        item: T,
        waiter: Waiter | None,
        shut_down: type[Exception],
        is_stale: Callable[[], bool] | None = None,
    ) -> Blocked | None:
        """Add an item at the end; raise `Stale` if nobody is to have it any more."""
        woken: Iterable[Waiter]
        late: tuple[list[Waiter], list[object]] | None = None
        try:
            with self._lock:
                if self._requests:  # an end mark that was put before this item comes before it
                    late = self._carry_out()
                if self.is_shutdown:
                    raise shut_down
                if is_stale is not None and is_stale():
                    raise Stale
                if not self._is_full():
                    woken = self._append(item)
                elif self._join is not None and self._join(self.items, item):
                    woken = ()
                elif waiter is None:
                    return BLOCKED
                else:
                    self._putters.line_up(waiter)
                    if self._is_full():  # once more, see `get_now`
                        return BLOCKED
                    self._putters.leave(waiter)
                    woken = self._append(item)
                if waiter is not None:
                    self._putters.arrive(waiter)
        finally:
            if late is not None:
                self._wake_from_anywhere(late[0])
            if self._requests:
                self._settle()
        for one in woken:
            self._wake(one)
        return None

    def _is_full(self) -> bool:
        return len(self.items) >= self._limit

    def _append(self, item: T) -> Iterable[Waiter]:
        items = self.items
        items.append(item)
        self.unfinished += 1
        if len(items) > self.peak:  # noqa: PLR1730 - max() costs more, for each token
            self.peak = len(items)
        return self._getters.call(1) if self._getters.waiters else ()

    # The same in short, for each token of a stream: where nothing but the item is concerned.

    def put_now(self, item: T) -> bool:
        """Add an item if there is a free slot and nothing else to do; whether it was added."""
        woken: Iterable[Waiter]
        try:
            with self._lock:
                items = self.items
                waiting = len(items)
                if self._requests or self.is_shutdown or waiting >= self._limit:
                    return False
                items.append(item)
                self.unfinished += 1
                if waiting >= self.peak:
                    self.peak = waiting + 1
                if not self._getters.waiters:
                    return True
                woken = self._getters.call(1)
        finally:
            if self._requests:
                self._settle()
        for one in woken:
            self._wake(one)
        return True

    def get_now(self) -> T | Blocked:
        """Take the first item if there is one and nothing else to do.

        Without the lock, which would cost as much as all the rest; `_IS_ORDERED` says on what
        that is built.  Nobody else relies on it that an item which is there stays there.  A
        putter lines up and then looks for a free slot once more, and here a slot is made free
        before the look at the line: one of the two sees the other.
        """
        if self._requests or self.is_closed or self._needs_lock:
            return BLOCKED
        try:
            try:
                item = self.items.popleft()
            except IndexError:
                return BLOCKED
            if self._putters.waiters:
                try:
                    with self._lock:
                        woken = self._putters_for_free_slot()
                finally:
                    if self._requests:
                        self._settle()
                for one in woken:
                    self._wake(one)
        except BaseException:  # Ctrl-C
            self.wake_putters_anyway()
            raise
        return item

    def try_join(self, waiter: Waiter | None) -> Blocked | None:
        """See whether all items are done."""
        try:
            with self._lock:
                if not self.unfinished:
                    if waiter is not None:
                        self._joiners.arrive(waiter)
                    return None
                if waiter is not None:
                    self._joiners.line_up(waiter)
                return BLOCKED
        finally:
            if self._requests:
                self._settle()

    # -- slots that are held ----------------------------------------------------------------

    def hold(self, number: int = 0) -> None:
        """From now on an item that is taken leaves its slot occupied, until `let_go`.

        Args:
            number: So many slots more are occupied at once: of items that were taken before,
                or count for more than one.
        """
        with self._lock:
            self._needs_lock = True  # so that an item and its slot are counted at once
            self._holds = True
            self.held += number
            self._limit -= number
        self._settle()

    def let_go(self, number: int) -> None:
        """Free the slots of that many items that were taken.

        **Thread safety**: as `shutdown`.
        """
        self._request(partial(self._free, number))

    def _free(self, number: int, _: list[object]) -> list[Waiter]:
        number = min(number, self.held)
        self.held -= number
        self._limit += number
        if not number or not self._putters.waiters:
            return []
        if self._low is None:
            return self._putters.call(number)
        return self._putters_for_free_slot()

    # -- waiting --------------------------------------------------------------------------

    def wait_in_thread(
        self,
        attempt: Callable[[Waiter | None], R | Blocked],
        timeout: float | None,
        gave_up: type[Exception],
    ) -> R:
        """Repeat an attempt until it works; at most ``timeout`` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        waiter = ThreadWaiter()
        try:
            while (done := attempt(waiter)) is BLOCKED:
                if not waiter.wait(None if deadline is None else deadline - monotonic()):
                    self._leave(waiter)
                    if (done := attempt(None)) is BLOCKED:
                        raise gave_up
                    break
        except BaseException as error:
            self._leave(waiter)
            if not isinstance(error, Exception):
                self.wake_putters_anyway()
            raise
        return done

    async def wait_in_task(
        self,
        attempt: Callable[[Waiter | None], R | Blocked],
        waiter: AsyncWaiter | None = None,
    ) -> R:
        """Repeat an attempt until it works; with a waiter of this loop that nobody has yet.

        Args:
            attempt: Lines the waiter up if it does not work.
            waiter: One that serves again; a new one if None.

        **Cancellation**: nothing was attempted; a wake-up passes to the next in line.
        """
        if waiter is None:
            waiter = async_waiter()
        waiter.on_lost = self._leave
        try:
            while (done := attempt(waiter)) is BLOCKED:
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
        if not waiter.wake():  # its loop was closed
            self._leave(waiter)

    def _replace(self, waiter: Waiter, _: list[object]) -> list[Waiter]:
        line: _Line | None = waiter.place
        waiter.place = None  # a wake-up passes on once
        if line is None:
            return []
        if line.leave(waiter):
            return []
        return line.call(1) if self._is_worth_trying(line) else []

    def _is_worth_trying(self, line: _Line) -> bool:
        if self.is_shutdown and line is not self._joiners:
            return True
        if line is self._getters:
            return bool(self.items)
        if line is self._putters:
            return not self._is_full()
        return not self.unfinished

    # -- requests: never wait for the lock ----------------------------------------------------

    def shutdown(self, *, immediate: bool) -> None:
        """Let nobody put any more; with ``immediate``, drop what waits.  Wakes everybody.

        **Thread safety**: any thread, finalizers and signal handlers; never waits.
        """
        # The flags first: whoever has the lock next sees them, whoever does the rest.
        self.is_shutdown = True
        if immediate:
            self.is_closed = True
        self._request(self._wake_all_at_end)

    def recheck_putters(self) -> None:
        """Wake all putters: the items of some are stale now.  The others line up again.

        **Thread safety**: as `shutdown`.
        """
        self._request(lambda _: self._putters.call(len(self._putters.waiters)))

    def wake_putters_anyway(self) -> None:
        """Whoever took an item was interrupted, perhaps before he woke those for its slot.

        Also those whom he has called already: one who is woken twice tries twice.

        **Thread safety**: as `shutdown`.
        """
        self._request(lambda _: self._putters.call_all())

    def put_past_end(self, item: T) -> None:
        """Put an item whether there is a free slot or not; nothing happens after a shutdown.

        **Thread safety**: as `shutdown`; the item may be in the buffer a moment later, but
        before any that the caller puts after it.
        """
        if not self.is_shutdown:
            self._request(partial(self._append_anyway, item))

    def _append_anyway(self, item: T, _: list[object]) -> list[Waiter]:
        # A shutdown that came after the request, and before it is carried out, keeps the item.
        return [] if self.is_closed else list(self._append(item))

    def _request(self, request: _Request) -> None:
        """Have something done under the lock, now or as soon as its holder releases it."""
        self._requests.append(request)
        self._settle()

    def _settle(self) -> None:
        """Do what was requested, unless somebody holds the lock, who will do it then.

        The request is in the list before the lock is tried, and the holder looks into the
        list after releasing: one of the two sees the other.
        """
        # By a name, because a child that is forked in here has another lock.
        while self._requests and (lock := self._lock).acquire(blocking=False):
            try:
                woken, dropped = self._carry_out()
            finally:
                lock.release()
            self._wake_from_anywhere(woken)
            del dropped  # not by the next turn, which holds the lock

    def _carry_out(self) -> tuple[list[Waiter], list[object]]:
        """Do all requests, under the lock.  Whom to wake, and what to drop, after it."""
        woken: list[Waiter] = []
        dropped: list[object] = []
        while self._requests:
            request = self._requests.pop(0)
            dropped.append(request)  # with the item that it may have refused
            woken += request(dropped)
        return woken, dropped

    def _wake_from_anywhere(self, woken: list[Waiter]) -> None:
        for waiter in woken:
            if not waiter.wake_from_anywhere():
                self._requests.append(partial(self._replace, waiter))

    def _wake_all_at_end(self, dropped: list[object]) -> list[Waiter]:
        woken = self._getters.call_all() + self._putters.call_all()
        if self.is_closed:
            items: list[object] = []
            while (item := self._pop()) is not BLOCKED:  # each is dropped, or a consumer's
                items.append(item)
            dropped.append(items)
            self.unfinished = max(0, self.unfinished - len(items))
            if not self.unfinished:
                woken += self._joiners.call_all()
        return woken

    def task_done(self) -> None:
        """Declare an item done; too many raise a ValueError."""
        late: tuple[list[Waiter], list[object]] | None = None
        woken: Iterable[Waiter] = ()
        try:
            with self._lock:
                if self._requests:  # what a shutdown drops is done
                    late = self._carry_out()
                if self.unfinished <= 0:
                    raise ValueError("task_done() called too many times")
                self.unfinished -= 1
                if not self.unfinished:
                    woken = self._joiners.call(len(self._joiners.waiters))
        finally:
            if late is not None:
                self._wake_from_anywhere(late[0])
            if self._requests:
                self._settle()
        for waiter in woken:
            self._wake(waiter)


_buffers: weakref.WeakSet[Buffer[Any]] = weakref.WeakSet()


def _renew_in_child() -> None:
    # The lock may have been held, and the waiters are the parent's.
    for buffer in members(_buffers):
        buffer.make_lock_and_lines()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
