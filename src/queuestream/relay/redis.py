"""`RedisRelay`: publish a stream under an id, and subscribe to it anywhere.

The theory, from the bottom up; each file owns one part of it:

- **Keys** (``_scripts``).  A run has one Redis stream and a lease, under one hash tag.
- **Entries** (``_entries``).  Their ids are ``epoch-number``.  Each attempt to write begins a new
  epoch, and Redis refuses an id that is not above the last one: so a stale writer is refused, an
  entry that is sent twice is taken once, and a final entry with the greatest number seals its
  epoch against everything but a new writer.  The first epoch of an id is the time in milliseconds,
  so that an id of a life that has expired is never mistaken for one of the next; each later one
  is 1 more.
- **Connections** (``_link``, ``_home``).  One pipeline at a time, joined of what came during the
  last.
- **Writing** (``_writer``).  The slot of a token is free when Redis has the token.
- **Reading** (``_reader``, ``_subscription``).  One blocking read for all readers of a process.

What happens when something fails:

=============================  =============================================================
the connection is lost         both ends try again, with growing pauses, for ``outage``
                               seconds.  The writer sends again what was under way, and Redis
                               knows by the ids what it has; a reader goes on after its cursor
Redis restarts                 the same.  With the append-only file nothing is lost; where
                               something is, its readers get a `GapError`
Redis stays away               `RelayUnavailableError` for all; the run is stopped
the writer is killed           its lease runs out: `ProducerLostError` for who has read all
the writer is restarted        a new epoch: a ``restart`` event, and everything from the start
two writers                    the later one goes on, the earlier one is refused:
                               `ProducerReplacedError`, and its run is stopped
entries are trimmed, expired   numbers have no gap: whoever needs them gets a `GapError`
the reader is slow             it leaves the shared read until it has room
=============================  =============================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import ConnectionPool

from queuestream._background import on_background_loop
from queuestream._checks import checked_count, checked_seconds
from queuestream._messages import text_returned
from queuestream.errors import RelayError, StreamClosedError
from queuestream.relay._entries import (
    LAST,
    OPENING,
    STOP,
    EntryId,
    cursor_of,
    encode,
    encode_end,
    encode_error,
    kind_of,
)
from queuestream.relay._home import Home
from queuestream.relay._link import Reply, Settings, refuse_on_background_loop
from queuestream.relay._scripts import STATE, STOP_RUN, keys_of
from queuestream.relay._subscription import Subscription, SubscriptionWatch
from queuestream.relay._writer import Writer
from queuestream.token_stream import TokenStream

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from queuestream.relay._scripts import Keys

__all__ = ["RedisRelay", "Status"]

Status = Literal["pending", "streaming", "finished", "failed", "stopped", "lost"]

_ENDED: dict[str, Status] = {"end": "finished", "stop": "stopped"}


class RedisRelay:
    """Streams that cross machines, over Redis 6.2 or newer, or Valkey; made by `from_url`.

    Connections are opened when they are first needed, two for a process: one for commands, one
    that waits for entries, whatever the number of writers and readers.

    **Thread safety**: all methods from any thread or task, of asyncio or trio.  The synchronous
    ones block, so not on a loop's own thread.  After a fork the child opens connections of its own.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._homes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Home]
        self._homes = weakref.WeakKeyDictionary()  # used on those loops only

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        ttl: float = 600.0,
        maxlen: int | None = 10_000,
        lease: float = 10.0,
        outage: float = 30.0,
        start_timeout: float | None = 60.0,
        max_entry: int = 1 << 20,
        prefix: str = "queuestream",
        shards: int = 64,
        cluster: bool = False,
        **options: Any,
    ) -> Self:
        """Make a relay.  Nothing is connected yet.

        All processes that share streams need the same ``prefix`` and ``shards``.

        Args:
            url: Of the server, as redis-py takes it: ``redis://``, ``rediss://``, ``unix://``.
            ttl: Seconds that a stream is kept after its last entry.
            maxlen: How many events of a stream are kept; None for all.  Older ones are trimmed.
            lease: Seconds after which a writer that gives no sign of life counts as dead.
            outage: Seconds that both ends go on trying to reach Redis.
            start_timeout: Seconds that a reader without a cursor waits for somebody to begin to
                write; for ever if None.
            max_entry: Bytes that one event may have as JSON.
            prefix: What all keys begin with.
            shards: How many hash tags the streams share.  In a cluster each process has one
                connection for the readers of each tag.
            cluster: Whether the server is a node of a cluster: streams of different tags are
                then read apart.
            options: More for redis-py's connections: ``password``, ``ssl_ca_certs``, say.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a number is too small, ``prefix`` is empty or has braces, or ``url``
                is none that redis-py knows, or sets what the relay sets itself.
        """
        if not isinstance(cast("object", url), str):
            raise TypeError(f"url must be a str, not {url!r}")
        if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
            raise ValueError(
                f"url must begin with redis://, rediss:// or unix://; got {_without_secrets(url)!r}"
            )
        if not isinstance(cast("object", prefix), str):
            raise TypeError(f"prefix must be a str, not {prefix!r}")
        if not prefix or "{" in prefix or "}" in prefix:
            raise ValueError(f"prefix must be a name without braces, not {prefix!r}")
        if unusable := _OWN & set(options):
            raise TypeError(f"the relay sets {', '.join(sorted(unusable))} itself")
        _check_rest_of(url)
        return cls(
            Settings(
                url=url,
                ttl=_positive("ttl", ttl),
                # the entries that begin and end a stream are no events
                maxlen=0 if maxlen is None else checked_count("maxlen", maxlen, least=1) + 2,
                lease=_positive("lease", lease),
                outage=checked_seconds("outage", _number("outage", outage)) or 0.0,
                start_timeout=checked_seconds("start_timeout", start_timeout),
                max_entry=checked_count("max_entry", max_entry, least=1),
                prefix=prefix,
                shards=checked_count("shards", shards, least=1),
                by_tag=cluster,
                options=options,
            )
        )

    def __del__(self) -> None:
        """Close the connections: nobody can use them any more."""
        for home in list(getattr(self, "_homes", {}).values()):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                home.link.loop.call_soon_threadsafe(home.end)

    def __repr__(self) -> str:
        """Name the server, without its password."""
        return f"<RedisRelay: {_without_secrets(self._settings.url)}>"

    # -- writing -----------------------------------------------------------------------------

    async def publish(
        self,
        id: str,
        stream: TokenStream[Any],
        *,
        on_open: Callable[[], object] | None = None,
    ) -> Any:
        """Write a stream's events under an id until it ends, and close it.

        The stream may select what it likes; events are what is written.  One that has begun
        already tells only what it selected of what it has made before this.  A stream is never
        more than its ``maxsize`` ahead of what Redis has.  (A queue that was given with
        ``queue=`` is emptied one event at a time.)

        Args:
            id: The run's name.  If there was a writer before, dead or alive, this one takes over.
            stream: The stream.
            on_open: Called once, when readers can find the run, and before the model is asked.

        Returns:
            The stream's ``result``.

        Raises:
            BaseException: The run's own error, after it is written.
            StreamClosedError: If the run was stopped, by `stop` or by closing the stream; before
                the model was asked, if it was stopped while nobody had begun.
            ProducerReplacedError: If another writer has begun under this id.
            EntryTooLargeError: If an event has more than ``max_entry`` bytes.
            RelayUnavailableError: If Redis stayed away.
            RelayError: If it refused something.
            TypeError: If ``id`` is no string, or ``stream`` no `TokenStream`.
            ValueError: If ``id`` is empty.

        **Cancellation**: stops the run; readers get a `RemoteRunError` that names it.
        """
        writer, home_of, slots = self._writer(id, stream)
        try:
            await Reply(lambda: home_of().open(writer)).wait_in_task()
            if on_open is not None:
                on_open()
            try:
                limit = self._settings.max_entry
                async for event in stream:
                    writer.put(encode(event, writer.earlier_attempts, limit))
                    if not slots:
                        await Reply(writer.flushed).wait_in_task()
                result = stream.result
                end = _end_of(stream, limit)
            except Exception as error:
                if writer.failure is not None:
                    raise writer.failure from None
                stream.close()
                seal = partial(writer.flushed, _seal_of(error))
                with contextlib.suppress(RelayError):  # the run's own error comes first
                    await Reply(seal).wait_in_task()
                raise
            await Reply(lambda: writer.flushed(end)).wait_in_task()
            return result
        except BaseException as error:
            if not isinstance(error, Exception):
                self._abandon(writer, error)
            raise
        finally:
            self._post(lambda: home_of().leave(writer))
            await stream.aclose()

    def publish_sync(
        self,
        id: str,
        stream: TokenStream[Any],
        *,
        on_open: Callable[[], object] | None = None,
    ) -> Any:
        """The same as `publish`, for a thread."""
        refuse_on_background_loop("publish_sync")
        writer, home_of, slots = self._writer(id, stream)
        try:
            Reply(lambda: home_of().open(writer)).wait()
            if on_open is not None:
                on_open()
            try:
                limit = self._settings.max_entry
                for event in stream:
                    writer.put(encode(event, writer.earlier_attempts, limit))
                    if not slots:
                        Reply(writer.flushed).wait()
                result = stream.result
                end = _end_of(stream, limit)
            except Exception as error:
                if writer.failure is not None:
                    raise writer.failure from None
                stream.close()
                seal = partial(writer.flushed, _seal_of(error))
                with contextlib.suppress(RelayError):  # the run's own error comes first
                    Reply(seal).wait()
                raise
            Reply(lambda: writer.flushed(end)).wait()
            return result
        except BaseException as error:
            if not isinstance(error, Exception):
                self._abandon(writer, error)
            raise
        finally:
            self._post(lambda: home_of().leave(writer))
            stream.close()

    def _writer(
        self, stream_id: str, stream: TokenStream[Any]
    ) -> tuple[Writer, Callable[[], Home], bool]:
        keys = self._keys(stream_id)
        if not isinstance(cast("object", stream), TokenStream):
            raise TypeError(
                "stream must be a TokenStream, as queuestream.stream() makes it; not "
                f"{type(stream).__name__}"
            )
        let_go = stream._forward()  # noqa: SLF001 - made for this
        return Writer(stream_id, keys, stream.close, let_go), self._home, let_go is not None

    @staticmethod
    def _abandon(writer: Writer, error: BaseException) -> None:
        with contextlib.suppress(RelayError):  # there is no loop any more
            writer.abandon(encode_error(error))

    # -- reading -----------------------------------------------------------------------------

    def subscribe(self, id: str, after: str | None = None) -> Subscription:
        """Iterate the events of a run, with ``async for``; from the start, or after an event.

        Every event comes once and in order, and then the end: the iteration ends, or raises what
        `Subscription` says.  An id that nobody writes to yet is waited for.

        Args:
            id: The run's name.
            after: The ``id`` of the last event that is known; None for the whole stream.  Takes
                a browser's ``Last-Event-ID`` as it is.

        Raises:
            TypeError: If ``id`` is no string, or ``after`` neither a string nor None.
            ValueError: If ``id`` is empty, or ``after`` no id.
        """
        watch = SubscriptionWatch(id, self._keys(id), cursor_of(after))
        return Subscription(watch, self._add)

    def subscribe_sync(self, id: str, after: str | None = None) -> Subscription:
        """The same as `subscribe`, for ``for``."""
        return self.subscribe(id, after)

    def _add(self, watch: SubscriptionWatch) -> None:
        on_background_loop(lambda: self._home().reader(watch.keys).add(watch), watch.fail_lost)

    # -- from anywhere -------------------------------------------------------------------------

    async def stop(self, id: str) -> bool:
        """Stop a run, wherever it is: its model stops, its readers get a `StreamClosedError`.

        A run that nobody writes yet is stopped, too: the next `publish` raises before its model
        is asked.

        Returns:
            Whether this has stopped it; false if it was over already.

        Raises:
            RelayUnavailableError: If Redis stayed away.
        """
        keys = self._keys(id)
        return await Reply(lambda: self._stop(keys)).wait_in_task()

    def stop_sync(self, id: str) -> bool:
        """The same as `stop`, for a thread."""
        refuse_on_background_loop("stop_sync")
        keys = self._keys(id)
        return Reply(lambda: self._stop(keys)).wait()

    async def _stop(self, keys: Keys) -> bool:
        home = self._home()
        ttl = max(1, round(self._settings.ttl * 1000))
        who = uuid.uuid4().hex
        return bool(
            await home.link.call(STOP_RUN, [keys.entries, keys.lease], STOP, OPENING, ttl, who)
        )

    async def status(self, id: str) -> Status:
        """What a run does.

        Returns:
            ``"pending"``: there is nothing, not yet or not any more.  ``"streaming"``: somebody
            writes.  ``"finished"``, ``"failed"``, ``"stopped"``: it is over.  ``"lost"``: its
            writer has died.

        Raises:
            RelayUnavailableError: If Redis stayed away.
        """
        keys = self._keys(id)
        return await Reply(lambda: self._status(keys)).wait_in_task()

    def status_sync(self, id: str) -> Status:
        """The same as `status`, for a thread."""
        refuse_on_background_loop("status_sync")
        keys = self._keys(id)
        return Reply(lambda: self._status(keys)).wait()

    async def _status(self, keys: Keys) -> Status:
        state = await self._home().link.call(STATE, [keys.entries, keys.lease])
        if not state:
            return "pending"
        if EntryId.parse(state[0]).number == LAST:
            return _ENDED.get(kind_of(state[1]), "failed")
        return "streaming" if state[2] > 0 else "lost"

    # -- its own end ---------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close the connections, and every subscription and writer that uses them.  Idempotent.

        The relay can be used again, and connects anew then.
        """
        await Reply(self._close).wait_in_task()

    def close(self) -> None:
        """The same as `aclose`, for a thread."""
        refuse_on_background_loop("close")
        Reply(self._close).wait()

    async def _close(self) -> None:
        home = self._homes.pop(asyncio.get_running_loop(), None)
        if home is not None:
            await home.close()

    async def __aenter__(self) -> Self:
        """Return the relay; leaving the block closes it."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        """Return the relay; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- the background loop ---------------------------------------------------------------------

    def _home(self) -> Home:
        loop = asyncio.get_running_loop()
        home = self._homes.get(loop)
        if home is None:
            home = self._homes[loop] = Home(self._settings)
        return home

    @staticmethod
    def _post(work: Callable[[], object]) -> None:
        """Have something done on the background loop, sooner or later, if it lives."""
        with contextlib.suppress(RuntimeError, OSError):  # at the interpreter's end
            on_background_loop(work, lambda _: None)

    def _keys(self, stream_id: str) -> Keys:
        if not isinstance(cast("object", stream_id), str):
            raise TypeError(f"id must be a str, not {stream_id!r}")
        if not stream_id:
            raise ValueError("id must not be empty")
        try:
            stream_id.encode()
        except UnicodeEncodeError:
            raise ValueError(f"id must be text that UTF-8 can encode, not {stream_id!r}") from None
        return keys_of(self._settings.prefix, self._settings.shards, stream_id)


_OWN = {"protocol", "decode_responses", "retry", "socket_timeout"}
"""Options of a connection that the relay sets itself."""


def _check_rest_of(url: str) -> None:
    """Find now what a URL has wrong behind its scheme: nobody is there to hear of it later."""
    if unusable := (_OWN | {"timeout"}) & parse_qs(urlsplit(url).query).keys():
        raise ValueError(f"the relay sets {', '.join(sorted(unusable))} itself; not in the URL")
    try:
        ConnectionPool.from_url(url)  # connects to nobody
    except (TypeError, ValueError) as error:
        raise ValueError(f"url is none that redis-py knows: {error}") from None


def _end_of(stream: TokenStream[Any], limit: int) -> bytes:
    returned = "" if stream.text else text_returned(stream.result)
    return encode_end(returned, stream.finish_reason, limit)


def _seal_of(error: Exception) -> bytes:
    return STOP if isinstance(error, StreamClosedError) else encode_error(error)


def _number(name: str, given: object) -> object:
    if given is None:
        raise TypeError(f"{name} must be a number of seconds, not None")
    return given


def _positive(name: str, given: object) -> float:
    found = checked_seconds(name, _number(name, given))
    if not found:
        raise ValueError(f"{name} must be more than 0 seconds and finite, not {given!r}")
    return found


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
