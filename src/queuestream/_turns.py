"""A thread's turn: how many async operations complete without waiting before others may run.

It belongs to the thread, not to a queue: a task that goes from one queue to the next
must let the loop's other tasks run as often as one that stays.
"""

from __future__ import annotations

import asyncio
import threading

import anyio.lowlevel

__all__ = ["TURN", "begin_turn", "end_turn", "loop_of_task", "must_yield", "running_asyncio_loop"]

running_asyncio_loop = asyncio._get_running_loop  # noqa: SLF001 - asyncio exports it
"""The asyncio loop that runs in this thread, or None.  Cheaper than an exception."""

TURN = 64
"""Async operations that one thread may complete without waiting before it lets the
loop's other tasks run.  A turn of the loop costs about as much as ten such operations."""


class _Turn:
    """What is left of a thread's turn.  An object, because a thread's variables are slow."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = TURN


class _Here(threading.local):
    def __init__(self) -> None:
        self.turn = _Turn()


_here = _Here()


def loop_of_task() -> asyncio.AbstractEventLoop | None:
    """The loop, if the caller is a task of asyncio.

    To ask anyio would cost as much as all the rest of a wait.  Where trio is asyncio's guest,
    the loop runs, and no task of it.
    """
    loop = running_asyncio_loop()
    return None if loop is None or asyncio.current_task(loop) is None else loop


def begin_turn() -> None:
    """Begin a new turn after a wait, unless this one is over and somebody is about to end it."""
    turn = _here.turn
    if turn.left > 0:
        turn.left = TURN + 1  # so many puts as waited to be got, and one more that waits


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
    if loop_of_task() is None:
        await anyio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)
    _here.turn.left = TURN
