"""`Turns`: whose turn it is to deliver, among threads and tasks."""

from __future__ import annotations

import contextlib
import contextvars
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING
from weakref import WeakSet

from janus import SyncQueueEmpty

from queuestream._buffer import members
from queuestream._turns import running_asyncio_loop
from queuestream.handlers._dual import held_up
from queuestream.mixed_queue import MixedQueue

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from contextvars import Token
    from uuid import UUID

    from queuestream.handlers._listener import Listener

__all__ = ["Turns", "may_wait", "without_turns"]

_had: ContextVar[tuple[_Turn, ...]] = ContextVar("queuestream turns", default=())
"""Those that the caller has, or whoever waits for what it does; also some that are over."""


class Turns:
    """One at a time: a lock that threads and tasks wait for, each in its way.

    Whoever has the turn has it again at once, also where it goes on in another thread or
    task of the same context: an ``on_token`` may call its handler.  A task that was begun in an
    earlier turn waits like all others.
    """

    __slots__ = ("__weakref__", "_free")

    def __init__(self) -> None:
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Forget who has it, and who waits."""
        self._free: MixedQueue[None] = MixedQueue()
        self._free.sync_q.put(None)

    def in_thread(self, *, waits: bool = True) -> AbstractContextManager[None]:
        """Have the turn in a block.

        Args:
            waits: Whether to wait for it.  Who must not wait for a loop that it holds up goes
                on without it.
        """
        return _Turn(self._free, waits=waits)

    def in_task(self, *, waits: bool = True) -> AbstractAsyncContextManager[None]:
        """Do the same as `in_thread`.

        **Cancellation**: the turn is not taken, or given back.
        """
        return _Turn(self._free, waits=waits)


class _Turn:
    """A block.  A class, so that one that is dropped half-way gives its turn back, too."""

    __slots__ = ("_token", "_waits", "free", "is_over")

    def __init__(self, free: MixedQueue[None], *, waits: bool) -> None:
        self.free = free
        self._waits = waits
        self._token: Token[tuple[_Turn, ...]] | None = None  # of what is given back
        self.is_over = False

    def __enter__(self) -> None:
        if self._is_had():
            return
        if self._waits:
            self.free.sync_q.get()
            self._note()
        else:
            self._take_at_once()

    async def __aenter__(self) -> None:
        if self._is_had():
            return
        if self._waits:
            await self.free.async_q.get()
            self._note()
        else:
            self._take_at_once()

    def _is_had(self) -> bool:
        # A task that was begun in a turn may outlive it, and has a copy of the context.
        return any(turn.free is self.free and not turn.is_over for turn in _had.get())

    def _take_at_once(self) -> None:
        with contextlib.suppress(SyncQueueEmpty):
            self.free.sync_q.get_nowait()
            self._note()

    def _note(self) -> None:
        self._token = _had.set((*(turn for turn in _had.get() if not turn.is_over), self))

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None  # which keeps its context
        if token is not None:
            self.is_over = True
            self.free.sync_q.put(None)
            with contextlib.suppress(ValueError):  # dropped: it ends in another context
                _had.reset(token)

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


def may_wait(handler: Listener, run_id: UUID | None) -> bool:
    """Whether a handler may wait for its turn in this thread, in a run.

    Whoever has the turn may need a loop to give it back, and this thread hold up that loop.
    """
    if not handler.may_wait:
        return True
    return running_asyncio_loop() is None and (run_id is None or run_id not in held_up)


def without_turns() -> contextvars.Context:
    """A copy of the context, for what goes on after the caller's turns."""
    context = contextvars.copy_context()
    context.run(_had.set, ())
    return context


_all: WeakSet[Turns] = WeakSet()


def _renew_in_child() -> None:
    # Whoever had the turn may be a thread of the parent.
    for turns in members(_all):
        turns.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
