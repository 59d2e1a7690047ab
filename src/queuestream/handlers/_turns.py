"""`Turns`: whose turn it is to deliver, among threads and tasks."""

from __future__ import annotations

import contextlib
import contextvars
from contextvars import ContextVar
from typing import TYPE_CHECKING

from janus import SyncQueueEmpty

from queuestream._turns import running_asyncio_loop
from queuestream.handlers._dual import held_up
from queuestream.mixed_queue import MixedQueue

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from contextvars import Token
    from uuid import UUID

    from queuestream.handlers._listener import Listener

__all__ = ["Turns", "may_wait", "without_turns"]

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

    def in_thread(self, *, waits: bool = True) -> AbstractContextManager[None]:
        """Have the turn in a block.

        Args:
            waits: Whether to wait for it.  Who must not wait for a loop that it holds up goes
                on without it.
        """
        return _Turn(self._free, self, waits=waits)

    def in_task(self, *, waits: bool = True) -> AbstractAsyncContextManager[None]:
        """Do the same as `in_thread`.

        **Cancellation**: the turn is not taken, or given back.
        """
        return _Turn(self._free, self, waits=waits)


class _Turn:
    """A block.  A class, so that one that is dropped half-way gives its turn back, too."""

    __slots__ = ("_free", "_token", "_turns", "_waits")

    def __init__(self, free: MixedQueue[None], turns: Turns, *, waits: bool) -> None:
        self._free = free
        self._turns = turns
        self._waits = waits
        self._token: Token[tuple[Turns, ...]] | None = None  # of what is given back

    def __enter__(self) -> None:
        if self._turns in _had.get():
            return
        if self._waits:
            self._free.sync_q.get()
            self._note()
        else:
            self._take_at_once()

    async def __aenter__(self) -> None:
        if self._turns in _had.get():
            return
        if self._waits:
            await self._free.async_q.get()
            self._note()
        else:
            self._take_at_once()

    def _take_at_once(self) -> None:
        with contextlib.suppress(SyncQueueEmpty):
            self._free.sync_q.get_nowait()
            self._note()

    def _note(self) -> None:
        self._token = _had.set((*_had.get(), self._turns))

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            self._free.sync_q.put(None)
            with contextlib.suppress(ValueError):  # dropped: it ends in another context
                _had.reset(self._token)

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
