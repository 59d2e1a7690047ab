"""`Doorbell`: the one way into a loop from elsewhere.

A bell joins the wake-ups for one loop: whoever finds it silent rings it, with one
``call_soon_threadsafe`` (a system call), and all that is wanted until the loop answers
is done in that one answer.  It has no lock, because a finalizer or a signal handler may
ring it in the middle of another ring on the same thread.  A loop that is closed before it
answers drops the answer, and those who were to be woken are *lost*: whoever lined them up
hears of it, and gives the news to the next in line.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Doorbell", "bell_of"]


class _Wish(Protocol):
    """What is wanted of a loop: that it opens a waiter."""

    @property
    def on_lost(self) -> Callable[[Any], object] | None: ...

    def open_now(self) -> None: ...


class Doorbell:
    """The one way into a loop from elsewhere.

    The order of two steps decides that nothing is missed.  Ringing appends the wish and
    then looks whether the bell is rung; answering first declares it silent and then counts
    the wishes that it takes.  The deque's own atomicity orders the two: if the answer
    counted before the append, the ringer sees a silent bell and rings.
    Two ringers at once may both find it silent; the second answer finds nothing.
    """

    __slots__ = ("_is_asyncio", "_loop", "_rung", "_wishes")

    def __init__(self, loop: Any) -> None:
        self._loop = weakref.ref(loop)  # the bell of a thread outlives the loop
        # Asked once: an abstract class takes four calls to say it.
        self._is_asyncio = isinstance(loop, asyncio.AbstractEventLoop)
        self._wishes: deque[_Wish] = deque()
        self._rung = False

    def belongs_to(self, loop: object) -> bool:
        return self._loop() is loop

    def ring(self, waiter: _Wish) -> bool:
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
            if self._call(loop, answer):
                return True
            self._wishes.remove(waiter)
        except ValueError:  # another thread took it, and calls it lost
            return True
        except BaseException:
            # Interrupted, perhaps before the loop heard it; then nobody would ring again.
            # A second answer finds nothing.
            if not self._call(loop, answer):
                answer.lose()  # now, and not when the traceback lets go of it
            raise
        answer.lose()
        return False

    def _call(self, loop: Any, answer: _Answer) -> bool:
        try:
            if self._is_asyncio:
                loop.call_soon_threadsafe(answer)
                return not loop.is_closed()  # else, closed while we called, it may keep the answer
            loop.run_sync_soon(answer)
        except RuntimeError:  # closed
            return False
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

    def __init__(self, bell: Doorbell) -> None:
        self._bell: Doorbell | None = bell

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


class _Here(threading.local):
    """This thread's bell."""

    bell: Doorbell | None = None


_here = _Here()


def bell_of(loop: object) -> Doorbell:
    """The bell of the asyncio loop or trio token that runs in this thread.

    A thread runs one loop at a time.  Where two alternate (trio as asyncio's guest), each
    change makes a new bell; the old one still works for those who hold it.
    """
    bell = _here.bell
    if bell is None or not bell.belongs_to(loop):
        bell = _here.bell = Doorbell(loop)
    return bell


def _forget_bell_in_child() -> None:
    _here.bell = None  # it may be rung, for a loop that did not come along


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_bell_in_child)
