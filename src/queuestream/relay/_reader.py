"""One blocking read for all who wait in a process, whatever stream they wait for.

`SharedReader` holds one connection.  Its ``XREAD BLOCK`` names the stream of each `Watch` that
has room, from the lowest cursor of those who watch it; what comes is read once and given to all.
Who joins while it blocks ends the read through a key of the reader's own, which is in every read.
Redis refuses a read for the sake of one stream: then each is asked for singly, to see whose.
None's, twice in a row: then nothing can be read.

What no entry would ever tell is looked at when it can be true at the earliest, never in between:
a watch has a deadline, at first when the lease that was seen runs out.  At a deadline the state
of its stream is asked for::

    no stream        a cursor: expired, GapError.  None: nobody has begun; StreamTimeoutError
                     after start_timeout seconds
    cursor is ahead  of all there is: GapError
    lease is there   the deadline is its end
    lease is gone    and all entries are read: ProducerLostError.  Not before one whole lease
                     has passed since a reconnection, in which the writer may come back, too
"""

from __future__ import annotations

import contextlib
import uuid
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from queuestream.errors import (
    GapError,
    ProducerLostError,
    RelayError,
    StreamClosedError,
    StreamTimeoutError,
)
from queuestream.relay._entries import LAST, START, EntryId, entry_of
from queuestream.relay._link import BLOCK, is_refusal, is_transient, keep_task
from queuestream.relay._scripts import STATE, WAKE

if TYPE_CHECKING:
    import asyncio

    from queuestream.relay._entries import Entry
    from queuestream.relay._link import Link
    from queuestream.relay._scripts import Keys

__all__ = ["SharedReader", "Watch"]

_COUNT = 64  # entries of one stream in one reply
_SLACK = 0.02  # seconds after the end of a lease, for Redis's own clock
_NEVER = float("inf")


class Watch:
    """Somebody who waits for entries of a stream.

    Attributes:
        keys: Whose.
        cursor: The last entry that it has.
        name: The stream's name, for messages.
        is_reader: Whether it is to have every entry, and hears of gaps and lost writers.
        deadline: When to look at the state of the stream.
        start_deadline: Until when somebody must have begun to write.
        is_gone: Whether it wants nothing more.  Set by anybody, who then calls `leave`.
        reader: Who reads for it, once that is known.
    """

    is_reader = True

    def __init__(self, name: str, keys: Keys, cursor: EntryId) -> None:
        self.name = name
        self.keys = keys
        self.cursor = cursor
        self.deadline = _NEVER
        self.start_deadline = _NEVER
        self.is_gone: bool = False
        self.reader: SharedReader | None = None

    def leave(self) -> None:
        """Want nothing more.

        **Thread safety**: any thread, finalizers and signal handlers; never waits.
        """
        self.is_gone = True
        reader = self.reader
        if reader is not None:  # else it is not let in
            with contextlib.suppress(RuntimeError):  # the loop is closed
                reader.loop.call_soon_threadsafe(reader.remove, self)

    def take(self, entry: Entry) -> bool:
        """Get an entry; false if there is no room for more, and the next comes when it asks."""
        raise NotImplementedError  # pragma: no cover - abstract

    def end(self, entry: Entry | None) -> None:
        """Get the final entry; None if that was before the cursor."""
        raise NotImplementedError  # pragma: no cover - abstract

    def fail(self, error: Exception) -> None:
        """Get an error instead of what comes."""
        raise NotImplementedError  # pragma: no cover - abstract


class SharedReader:
    """See the module's docstring.  Used on the background loop only.

    Attributes:
        loop: That loop.
    """

    def __init__(self, link: Link, tag: str) -> None:
        self.loop: asyncio.AbstractEventLoop = link.loop
        self._link = link
        self._client = link.settings.client(BLOCK + 5.0)
        self._watches: dict[str, list[Watch]] = {}
        self._task: asyncio.Task[None] | None = None
        self._under_way: dict[str, EntryId] | None = None
        self._wake_key = f"{tag}:wake:{uuid.uuid4().hex}"
        self._wakes = 0
        self._is_woken = False
        self._was_refused = False  # the last read, and no stream was to blame
        self._until = 0.0  # when the read that is under way ends by itself
        self._is_closed = False
        self._grace = 0.0  # until when a lease that is gone says nothing

    async def close(self) -> None:
        """Let everybody go, and close the connection."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
        self._fail_all(StreamClosedError("the relay was closed"))
        await self._client.aclose()

    def add(self, watch: Watch) -> None:
        """Let somebody watch, who has just come or has room again."""
        watch.reader = self
        keep_task(self.loop.create_task(self._admit(watch)))

    async def _admit(self, watch: Watch) -> None:
        if watch.is_reader:
            try:
                if watch.start_deadline == _NEVER and watch.cursor == START:
                    limit = self._link.settings.start_timeout
                    watch.start_deadline = _NEVER if limit is None else monotonic() + limit
                await self._look([watch])
            except RelayError as error:
                self._fail(watch, error)
        if self._is_closed and not watch.is_gone:
            self._fail(watch, StreamClosedError("the relay was closed"))
        if watch.is_gone:
            return
        key = watch.keys.entries
        watches = self._watches.setdefault(key, [])
        if watch in watches:  # it was to pause, and neither it nor we knew that it had not yet
            return
        watches.append(watch)
        if self._task is None:
            self._task = self.loop.create_task(self._read_all())
            keep_task(self._task)
        elif self._under_way is not None and not self._is_woken:
            reads_from = self._under_way.get(key)
            if reads_from is None or reads_from > watch.cursor or watch.deadline < self._until:
                self._wake()

    def remove(self, watch: Watch) -> None:
        """Somebody wants nothing more."""
        watch.is_gone = True
        self._drop(watch)
        if not self._watches and self._under_way is not None and not self._is_woken:
            self._wake()

    def _drop(self, watch: Watch) -> None:
        watches = self._watches.get(watch.keys.entries, [])
        if watch in watches:
            watches.remove(watch)
            if not watches:
                del self._watches[watch.keys.entries]

    def _fail(self, watch: Watch, error: Exception) -> None:
        watch.is_gone = True
        self._drop(watch)
        watch.fail(error)

    def _end(self, watch: Watch, entry: Entry | None) -> None:
        watch.is_gone = True
        self._drop(watch)
        watch.end(entry)

    def _wake(self) -> None:
        self._is_woken = True
        self._wakes += 1
        done = self._link.call(WAKE, [self._wake_key], self._wakes, int(BLOCK * 6000))
        done.add_done_callback(_no_matter)

    # -- reading -----------------------------------------------------------------------------

    async def _read_all(self) -> None:
        try:
            while self._watches:
                now = monotonic()
                due = [each for each in self._all() if each.deadline <= now]
                if due:
                    await self._look(due)
                    continue
                await self._read()
        except RelayError as error:
            self._fail_all(error)
        except BaseException as error:
            failure = RelayError("the shared reader has died")
            failure.__cause__ = error
            self._fail_all(failure)
            if not isinstance(error, Exception):
                raise
        finally:
            self._task = None
            self._under_way = None
            if self._watches:  # who came while this ended
                self._task = self.loop.create_task(self._read_all())
                keep_task(self._task)

    def _all(self) -> list[Watch]:
        return [watch for watches in self._watches.values() for watch in watches]

    async def _read(self) -> None:
        cursors = {
            key: min(watch.cursor for watch in watches) for key, watches in self._watches.items()
        }
        now = monotonic()
        self._until = min(now + BLOCK, *(watch.deadline for watch in self._all()))
        wait = max(1, round((self._until - now) * 1000))
        names = [*cursors, self._wake_key]
        ids = [*map(str, cursors.values()), f"{self._wakes}-0"]
        self._under_way = cursors
        self._is_woken = False
        was_refused, self._was_refused = self._was_refused, False
        command = ("XREAD", "COUNT", _COUNT, "BLOCK", wait, "STREAMS", *names, *ids)
        try:
            reply: Any = await self._link.persistently(
                lambda: self._client.execute_command(*command), self._note_loss
            )
        except RelayError as error:
            if not is_refusal(error):
                raise
            if not await self._fail_refused(cursors):
                if was_refused:
                    raise
                self._was_refused = True  # once may be a stream that is gone since: read again
            return
        finally:
            self._under_way = None
        found = reply.items() if isinstance(reply, dict) else reply or ()
        for key, entries in found:
            name = key.decode("utf-8", "surrogatepass")
            if name != self._wake_key:
                self._give(name, entries, cursors[name])

    async def _fail_refused(self, cursors: dict[str, EntryId]) -> bool:
        """Fail those whose streams Redis refuses to read; whether there are any."""
        self._under_way = None  # who comes now is in the next read
        replies = await self._link.persistently(
            partial(self._read_singly, cursors), self._note_loss
        )
        refused = [
            (watch, reply)
            for key, reply in zip(cursors, replies, strict=True)
            if isinstance(reply, ResponseError)
            for watch in self._watches.get(key, ())
        ]
        for watch, reply in refused:
            error = RelayError(f"Redis refused to read {watch.name}: {reply}")
            error.__cause__ = reply
            self._fail(watch, error)
        return any(isinstance(reply, ResponseError) for reply in replies)

    async def _read_singly(self, cursors: dict[str, EntryId]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for key, cursor in cursors.items():
            pipeline.execute_command("XREAD", "COUNT", 1, "STREAMS", key, str(cursor))
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, ResponseError) and is_transient(reply):
                raise reply
        return replies

    def _note_loss(self) -> None:
        self._grace = monotonic() + self._link.settings.lease + 1.0

    def _give(self, key: str, raw: list[tuple[bytes, dict[bytes, bytes]]], cursor: EntryId) -> None:
        # Who came while this was read, and needs what is before it, is served by the next read.
        watches = [watch for watch in self._watches.get(key, ()) if watch.cursor >= cursor]
        is_all = len(raw) < _COUNT
        for place, (raw_id, fields) in enumerate(raw):
            if not watches:
                return
            try:
                entry = entry_of(raw_id, fields)
            except RelayError as error:
                for watch in watches:
                    self._fail(watch, error)
                return
            is_last = place == len(raw) - 1
            if entry.final is not None and is_last and not is_all:
                return  # whether it is the end is seen when it is read again
            for watch in list(watches):
                if entry.id > watch.cursor and not self._give_one(watch, entry, is_last=is_last):
                    watches.remove(watch)

    def _give_one(self, watch: Watch, entry: Entry, *, is_last: bool) -> bool:
        """Give an entry to somebody; whether there may be more for it."""
        if watch.is_reader and entry.previous != watch.cursor:
            gone = f"{watch.name}: entries after {watch.cursor} are gone; the next is {entry.id}"
            self._fail(watch, GapError(gone))
            return False
        watch.cursor = entry.id
        if watch.is_reader and watch.deadline == watch.start_deadline:  # somebody has begun
            watch.deadline = monotonic() + self._link.settings.lease
        if entry.final is not None and is_last:
            self._end(watch, entry)
            return False
        has_room = watch.take(entry)
        if not has_room:
            self._drop(watch)
        return has_room

    def _fail_all(self, error: Exception) -> None:
        watches, self._watches = self._all(), {}
        for watch in watches:
            self._fail(watch, error)

    # -- what no entry tells -------------------------------------------------------------------

    async def _look(self, watches: list[Watch]) -> None:
        """Look at the state of some streams, and tell those who watch them what follows."""
        seen = [watch.cursor for watch in watches]
        answers = {
            watch.keys: self._link.call(STATE, [watch.keys.entries, watch.keys.lease])
            for watch in {watch.keys: watch for watch in watches}.values()
        }
        states = {keys: await _state_of(answer) for keys, answer in answers.items()}
        for watch, cursor in zip(watches, seen, strict=True):
            state = states[watch.keys]
            if isinstance(state, RelayError):
                if not watch.is_gone:
                    self._fail(watch, state)
            elif watch.cursor == cursor and not watch.is_gone:
                self._judge(watch, state)
            else:
                watch.deadline = monotonic() + self._link.settings.lease

    def _judge(self, watch: Watch, state: list[Any]) -> None:
        now = monotonic()
        lease = self._link.settings.lease
        error: Exception | None = None
        if not state:
            watch.deadline = watch.start_deadline
            if watch.cursor != START:
                error = GapError(
                    f"{watch.name} has expired; the entries after {watch.cursor} are gone"
                )
            elif now >= watch.start_deadline:
                error = StreamTimeoutError(
                    f"{watch.name}: nobody began to write within "
                    f"start_timeout={self._link.settings.start_timeout:g} seconds"
                )
        else:
            last, left = EntryId.parse(state[0]), state[2] / 1000
            if watch.cursor > last:
                error = GapError(
                    f"{watch.name}: {watch.cursor} is after the last entry, which is {last}: what "
                    "was written is lost, or the id is another stream's"
                )
            elif last.number == LAST:
                watch.deadline = now + lease  # the final entry is there to be read
                if watch.cursor == last:
                    self._end(watch, None)
            elif left > 0:
                watch.deadline = now + left + _SLACK
            elif now < self._grace:
                watch.deadline = self._grace
            elif watch.cursor == last:
                error = ProducerLostError(
                    f"{watch.name}: its writer has died after {last}: its lease ran out"
                )
            else:
                watch.deadline = now + min(lease, 0.25)  # by then the rest is read
        if error is not None:
            self._fail(watch, error)


async def _state_of(answer: Any) -> Any:
    """A state; the error in its place if Redis refused that of this one stream."""
    try:
        return await answer
    except RelayError as error:
        if not is_refusal(error):
            raise
        return error


def _no_matter(done: Any) -> None:
    if not done.cancelled():
        done.exception()
