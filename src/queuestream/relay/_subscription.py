"""The reading end: what comes from the shared reader, for one consumer.

Two threads meet here: the background loop puts into a queue, the consumer takes.  When so many
events wait that there is no room, the watch leaves the shared reader; the consumer that has
taken half of them lets it come back.  It reads from Redis again, so nobody's memory grows.
"""

from __future__ import annotations

import os
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from queuestream.errors import (
    ConcurrentIterationError,
    RelayError,
    StreamClosedError,
)
from queuestream.mixed_queue import MixedQueue
from queuestream.relay._entries import START, RelayEvent, error_of
from queuestream.relay._link import refuse_on_background_loop
from queuestream.relay._reader import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from queuestream.mixed_queue import SyncFace
    from queuestream.relay._entries import Entry, EntryId
    from queuestream.relay._scripts import Keys

__all__ = ["Subscription", "SubscriptionWatch"]

_ROOM = 64  # events that may wait for one consumer, and may be one reply more for a moment


class _End:
    """The end, or an error in its place."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class SubscriptionWatch(Watch):
    """Puts what it gets into a queue.

    Attributes:
        queue: The queue.
        is_paused: Whether it has left the reader, for want of room.
        told_at_end: What the final entry tells.
    """

    def __init__(self, name: str, keys: Keys, cursor: EntryId) -> None:
        super().__init__(name, keys, cursor)
        self.queue: MixedQueue[RelayEvent | _End] = MixedQueue(0)
        self.is_paused: bool = False
        self.told_at_end: Mapping[str, Any] = {}

    def take(self, entry: Entry) -> bool:
        """Get an entry; false if there is no room for more."""
        if entry.event is not None:
            self.queue.sync_q.put_nowait(entry.event)
        if self.queue.sync_q.qsize() < _ROOM:
            return True
        self.is_paused = True
        # The consumer takes and then looks at the flag, this looks the other way round: one of
        # the two sees the other.
        if self.has_room():
            self.is_paused = False
            return True
        return False

    def has_room(self) -> bool:
        """Whether it is worth reading again."""
        return self.queue.sync_q.qsize() <= _ROOM // 2

    def end(self, entry: Entry | None) -> None:
        """Get the final entry."""
        error: Exception | None = None
        final: Any = {} if entry is None or entry.final is None else entry.final
        self.told_at_end = final
        if final.get("k") == "error":
            error = error_of(final)
        elif final.get("k") == "stop":
            error = StreamClosedError(f"{self.name} was stopped before its end")
        self.queue.sync_q.put_nowait(_End(error))

    def fail(self, error: Exception) -> None:
        """Get an error, of one's own: it may be told to many."""
        own = copy(error)
        own.__cause__ = error.__cause__
        error = own
        self.queue.sync_q.put_nowait(_End(error))

    def say_closed(self) -> None:
        """Wake a consumer that waits.  Takes no lock that this very thread may hold."""
        cast("SyncFace[Any]", self.queue.sync_q).buffer.put_past_end(_End(None))

    def fail_lost(self, error: BaseException) -> None:
        """The loop that was to read has died."""
        failure = RelayError("the background loop that all streams share has died")
        failure.__cause__ = error
        self.fail(failure)


class Subscription:
    """The events of a run that is written somewhere; made by `RedisRelay.subscribe`.

    An iterator and a context manager, both synchronous and asynchronous (asyncio, trio).
    Nothing is read before it is first iterated.  One-shot.

    **Cancellation**: a cancelled wait for an event has taken none.

    **Thread safety**: one consumer at a time; `close` from anywhere, finalizers and signal
    handlers included.
    """

    __slots__ = (
        "__weakref__",
        "_add",
        "_has_begun",
        "_is_closed",
        "_is_finished",
        "_is_waiting",
        "_last_id",
        "_pid",
        "_watch",
    )

    def __init__(
        self,
        watch: SubscriptionWatch,
        add: Callable[[SubscriptionWatch], None],
    ) -> None:
        self._watch = watch
        self._add = add
        self._has_begun = False
        self._is_closed = False
        self._is_finished = False
        self._is_waiting = False
        self._last_id = None if watch.cursor == START else str(watch.cursor)
        self._pid = os.getpid()

    @property
    def last_id(self) -> str | None:
        """The id of the last event that was received, at first ``after``; where to go on."""
        return self._last_id

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, in its provider's word; known after the end, if at all."""
        return self._told_at_end.get("f")

    @property
    def returned(self) -> str:
        """The text that the run returned; known after the end, empty if its events have told it.

        Also empty if it returned no text, no message, and no state whose last message has some.
        """
        return str(self._told_at_end.get("t", ""))

    @property
    def _told_at_end(self) -> Mapping[str, Any]:
        return self._watch.told_at_end if self._is_finished else {}

    def __iter__(self) -> Self:
        """Return the subscription."""
        return self

    def __aiter__(self) -> Self:
        """Return the subscription."""
        return self

    def __next__(self) -> RelayEvent:
        """Return the next event; wait for it.

        Raises:
            StopIteration: If the run has ended.
            RemoteRunError: If it failed; with the name and the message of its own error.
            StreamClosedError: If it was stopped, or this was closed.
            GapError: If entries after the last event are gone: trimmed, expired or lost.
            ProducerLostError: If the writer died.
            StreamTimeoutError: If nobody began to write within ``start_timeout``.
            RelayUnavailableError: If Redis stayed away.
            ConcurrentIterationError: If another consumer waits already.
            PlacementError: On the background loop of the package, which it would hold up.
        """
        if self._is_finished:
            raise StopIteration
        refuse_on_background_loop("a synchronous subscription")
        self._enter()
        try:
            item = self._watch.queue.sync_q.get()
        finally:
            self._is_waiting = False
        if isinstance(item, RelayEvent) and not self._is_closed:
            return self._deliver(item)
        self._finish(item)
        raise StopIteration

    async def __anext__(self) -> RelayEvent:
        """Return the next event; wait for it.  Raises as ``__next__`` does."""
        if self._is_finished:
            raise StopAsyncIteration
        self._enter()
        try:
            item = await self._watch.queue.async_q.get()
        finally:
            self._is_waiting = False
        if isinstance(item, RelayEvent) and not self._is_closed:
            return self._deliver(item)
        self._finish(item)
        raise StopAsyncIteration

    def _enter(self) -> None:
        if self._is_waiting:
            raise ConcurrentIterationError(
                f"another thread or task is waiting for the next event of {self._watch.name}; one "
                "consumer at a time"
            )
        if self._pid != os.getpid():
            raise StreamClosedError(f"{self._watch.name} is read in the process that was forked")
        self._is_waiting = True
        if not self._has_begun and not self._is_closed:
            self._has_begun = True
            self._add(self._watch)

    def _deliver(self, event: RelayEvent) -> RelayEvent:
        self._last_id = event.id
        watch = self._watch
        if watch.is_paused and watch.has_room():
            watch.is_paused = False
            self._add(watch)
        return event

    def _finish(self, end: RelayEvent | _End) -> None:
        if self._is_closed:
            self._watch.queue.sync_q.put_nowait(_End(None))  # for whoever asks again
            raise StreamClosedError(
                f"the subscription to {self._watch.name} was closed before its end"
            )
        self._is_finished = True
        if isinstance(end, _End) and end.error is not None:
            raise end.error

    def close(self) -> None:
        """Read no more; the run goes on.  Idempotent, never waits.

        Iteration raises `StreamClosedError` from now on, unless the end was received.
        """
        watch = self._watch
        if self._is_finished or self._is_closed or self._pid != os.getpid():
            return
        self._is_closed = True
        watch.leave()
        watch.say_closed()

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    def __enter__(self) -> Self:
        """Return the subscription; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        """Return the subscription; leaving the block closes it."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Read no more: nobody can ask for it."""
        self.close()
