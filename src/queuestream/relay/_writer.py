"""One writer of one run: what it has, what is under way to Redis, and what became of it.

::

    new --(OPEN)--> open --(seal)--> over
                     |
                     +--(refused, stopped, out of reach)--> failed

While one append is under way, what comes meanwhile goes into the next: a slow run's tokens are
sent one by one at once, those of a quick run together.  The slot that a token has in the stream's
queue is let go of when Redis has taken the token, so the run is never more than ``maxsize``
ahead of Redis.

A writer also watches its own epoch's final entry, so that a stop reaches a silent model.  When
anything but the run itself ends it, it closes the stream: the consumer that feeds it meets that.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

from queuestream.errors import ProducerReplacedError, RelayError, StreamClosedError
from queuestream.relay._entries import LAST, OPENING, STOP, EntryId
from queuestream.relay._link import keep_task
from queuestream.relay._reader import Watch
from queuestream.relay._scripts import APPEND, OPEN, RENEW

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream.relay._entries import Entry
    from queuestream.relay._link import Link
    from queuestream.relay._reader import SharedReader
    from queuestream.relay._scripts import Keys

__all__ = ["Writer"]

_MOST = 256  # entries of one append
_MOST_BYTES = 1 << 20


class _Final(Watch):
    """Sees the epoch of a writer end, or another begin."""

    is_reader = False

    def __init__(self, writer: Writer, cursor: EntryId) -> None:
        super().__init__(writer.name, writer.keys, cursor)
        self._writer = writer

    def take(self, entry: Entry) -> bool:
        self._writer.note_end(entry)
        return False

    def end(self, entry: Entry | None) -> None:
        if entry is not None:
            self._writer.note_end(entry)

    def fail(self, error: Exception) -> None:
        self._writer.fail(error)


class Writer:
    """See the module's docstring.

    Attributes:
        name: The run's name.
        keys: Its keys.
        failure: Why it can write no more, if so.
        earlier_attempts: How many writers there were before it.
        has_left: Whether whoever had the tokens has gone.
    """

    def __init__(
        self,
        name: str,
        keys: Keys,
        close: Callable[[], None],
        let_go: Callable[[int], None] | None,
    ) -> None:
        self.name = name
        self.keys = keys
        self.failure: Exception | None = None
        self.earlier_attempts = 0
        self.has_left = False
        self._close = close
        self._let_go = let_go
        self._who = uuid.uuid4().hex
        self._epoch = 0
        self._number = 1  # of the next entry
        self._waiting: deque[bytes] = deque()
        self._is_rung = False
        self._seal = b""
        self._is_over = False
        self._task: asyncio.Task[None] | None = None
        self._call: asyncio.Future[Any] | None = None
        self._done: list[asyncio.Future[None]] = []
        self._link: Link
        self._reader: SharedReader
        self._final: _Final
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- by whoever has the tokens, anywhere -----------------------------------------------------

    def put(self, data: bytes) -> None:
        """Add an entry; never waits."""
        self._waiting.append(data)
        self._ring()

    def abandon(self, seal: bytes) -> None:
        """Seal, and don't wait until that is done; also before it has begun."""
        self._seal = seal
        if self._loop is not None:
            self._ring()

    def _ring(self) -> None:
        # The entry is there before this look; `_answer` clears the flag before it looks.
        if not self._is_rung:
            self._is_rung = True
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:
                raise RelayError("the background loop that all streams share has died") from None

    # -- on the background loop ------------------------------------------------------------------

    async def open(self, link: Link, reader: SharedReader) -> None:
        """Begin an epoch.

        Raises:
            StreamClosedError: If the run was stopped before it began.
            RelayError: If Redis cannot be reached, or refuses.
        """
        self._link, self._reader = link, reader
        settings = link.settings
        is_stopped, epoch, base = await link.call(
            OPEN,
            [self.keys.entries, self.keys.lease],
            self._who,
            _milliseconds(settings.lease),
            _milliseconds(settings.ttl),
            OPENING,
            STOP,
        )
        if is_stopped:
            raise StreamClosedError(f"{self.name} was stopped before it began")
        self._epoch = int(epoch)
        self.earlier_attempts = self._epoch - int(base)
        self._loop = asyncio.get_running_loop()
        self._final = _Final(self, EntryId(self._epoch, LAST - 1))
        if not self.has_left:
            reader.add(self._final)
        elif self._seal:  # whoever began was cancelled meanwhile
            self._answer()

    async def renew(self) -> None:
        """Renew the lease."""
        try:
            settings = self._link.settings
            is_ours = await self._link.call(
                RENEW,
                [self.keys.entries, self.keys.lease],
                self._epoch,
                _milliseconds(settings.lease),
                _milliseconds(settings.ttl),
            )
        except RelayError as error:
            self.fail(error)
        else:
            if not is_ours and not self._is_over:
                self.fail(self._replaced())

    async def flushed(self, seal: bytes = b"") -> None:
        """Wait until all is written, and the final entry, if there is one.

        Raises:
            Exception: `failure`, if it could not be written.
        """
        self._seal = seal or self._seal
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.append(done)
        self._answer()
        await done
        if self.failure is not None:
            raise self.failure

    def _answer(self) -> None:
        self._is_rung = False
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write())
            keep_task(self._task)

    async def _write(self) -> None:
        try:
            while self.failure is None and (self._waiting or (self._seal and not self._is_over)):
                await self._append()
        except RelayError as error:
            self.fail(error)
        finally:
            self._task = None
            done, self._done = self._done, []
            for one in done:
                if not one.done():
                    one.set_result(None)

    async def _append(self) -> None:
        batch: list[bytes] = []
        size = 0
        while self._waiting and len(batch) < _MOST and size < _MOST_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1])
        seal = b"" if self._waiting else self._seal
        settings = self._link.settings
        # Each of these two costs Redis as much as the entry itself.  `renew` lets the stream live
        # on three times in a lease; entries of earlier epochs are trimmed with the first.
        has_too_many = self._number == 1 or self._number + len(batch) >= settings.maxlen
        must_expire_later = bool(seal) or settings.ttl < settings.lease
        call = self._call = self._link.call(
            APPEND,
            [self.keys.entries, self.keys.lease],
            self._epoch,
            self._number,
            settings.maxlen if has_too_many or self.earlier_attempts else 0,
            _milliseconds(settings.ttl) if must_expire_later else 0,
            seal,
            *batch,
        )
        try:
            reply = await call
        except asyncio.CancelledError:
            if self.failure is None:
                raise
            return
        if reply[0] == 1:
            self.fail(self._replaced())
        elif reply[0] == 2:  # noqa: PLR2004 - as the script says
            self.fail(self._stopped())
        else:
            self._number += len(batch)
            self._is_over = bool(seal)
            if self._let_go is not None:
                self._let_go(len(batch))

    def note_end(self, entry: Entry) -> None:
        """The epoch was seen to be over."""
        if self._seal or self._is_over:
            return  # our own final entry, or `_append` hears of it
        if entry.id.epoch > self._epoch:
            self.fail(self._replaced())
        else:
            self.fail(self._stopped())

    def fail(self, error: Exception) -> None:
        """Write no more, and stop the run."""
        if self.failure is None and not self._is_over:
            self.failure = error
            self._waiting.clear()
            if self._call is not None:
                self._call.cancel()  # or it might be sent when Redis comes back
            self._close()

    def leave(self) -> None:
        """Whoever had the tokens has gone: watch no more."""
        self.has_left = True
        final = getattr(self, "_final", None)
        if final is not None:
            self._reader.remove(final)

    def _replaced(self) -> ProducerReplacedError:
        return ProducerReplacedError(
            f"{self.name}: another writer has begun; this one (epoch {self._epoch}) is over"
        )

    def _stopped(self) -> StreamClosedError:
        return StreamClosedError(f"{self.name} was stopped from elsewhere")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
