"""`Turns`: whose turn it is to deliver, among threads and tasks."""

from __future__ import annotations

import contextlib
import contextvars
from contextvars import ContextVar
from typing import TYPE_CHECKING

from queuestream.mixed_queue import MixedQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["Turns", "without_turns"]

_had: ContextVar[tuple[Turns, ...]] = ContextVar("queuestream turns", default=())
"""Those that the caller has, or whoever waits for what it does."""


class Turns:
    """One at a time: a lock that threads and tasks wait for, each in its way.

    Whoever has the turn has it again at once, also where it goes on in another thread or
    task of the same context: an ``on_token`` may call its handler.
    """

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: MixedQueue[None] = MixedQueue()
        self._free.sync_q.put(None)

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[None]:
        """Have the turn in this block; wait for it."""
        had = _had.get()
        if self in had:
            yield
            return
        self._free.sync_q.get()
        token = _had.set((*had, self))
        try:
            yield
        finally:
            _had.reset(token)
            self._free.sync_q.put(None)

    @contextlib.asynccontextmanager
    async def in_task(self) -> AsyncIterator[None]:
        """Have the turn in this block; wait for it.

        **Cancellation**: the turn is not taken, or given back.
        """
        had = _had.get()
        if self in had:
            yield
            return
        await self._free.async_q.get()
        token = _had.set((*had, self))
        try:
            yield
        finally:
            _had.reset(token)
            self._free.sync_q.put(None)


def without_turns() -> contextvars.Context:
    """A copy of the context, for what goes on after the caller's turns."""
    context = contextvars.copy_context()
    context.run(_had.set, ())
    return context
