"""The connections of a process: one that carries commands, one that waits for entries.

All of a relay's input and output happens on the asyncio loop that the package's background runs
share, in its daemon thread.  So threads, asyncio tasks and trio tasks are served alike, however
many loops there are, connections never meet a loop that is not theirs, and a lease is renewed
while somebody's own loop is held up.

Commands are joined: while one pipeline is under way, what comes meanwhile goes into the next.
So nothing waits where little is going on, and a busy connection carries more with each turn.
Who loses the connection asks again, for `Settings.outage` seconds; all scripts allow that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - the library's own name for it
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - the library's own name for it
    TryAgainError,
)

from queuestream._background import is_background_loop, on_background_loop
from queuestream._turns import running_asyncio_loop
from queuestream.errors import PlacementError, RelayError, RelayUnavailableError
from queuestream.mixed_queue import MixedQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from queuestream.relay._scripts import Script

__all__ = [
    "BLOCK",
    "Link",
    "Reply",
    "Settings",
    "is_refusal",
    "is_transient",
    "keep_task",
    "refuse_on_background_loop",
]

T = TypeVar("T")

_logger = logging.getLogger("queuestream.relay")

BLOCK = 10.0
"""Seconds that one blocking read may last: so long a dead connection looks like a quiet one."""

_SOCKET_TIMEOUT = 5.0  # seconds that Redis may take to answer a command
_MOST_COMMANDS = 512  # of one pipeline
_MOST_BYTES = 1 << 20

# What redis-py has a class for it tells without its word; from version 6 that is more than in 5.
_TRANSIENT = (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
_TRANSIENT_WORDS = ("CLUSTERDOWN", "MASTERDOWN", "MISCONF", "NOREPLICAS", "TRYAGAIN", "UNBLOCKED")
_FINAL = (AuthenticationError, AuthorizationError)


@dataclass(frozen=True)
class Settings:
    """What a relay was made with; see `RedisRelay`."""

    url: str
    ttl: float
    maxlen: int
    lease: float
    outage: float
    start_timeout: float | None
    max_entry: int
    prefix: str
    shards: int
    by_tag: bool
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def client(self, socket_timeout: float) -> Any:
        """A client; it does not try again by itself, because `Link.persistently` does."""
        options: dict[str, Any] = {
            "socket_connect_timeout": _SOCKET_TIMEOUT,
            "socket_keepalive": True,
            **self.options,
            "protocol": 2,  # so that replies look alike in all versions of redis-py
            "decode_responses": False,
            "socket_timeout": socket_timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        return redis.asyncio.from_url(self.url, **options)


class Reply(Generic[T]):
    """An answer from the background loop, for a thread or a task of any loop."""

    __slots__ = ("_answers",)

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        answers: MixedQueue[tuple[Any, BaseException | None]] = MixedQueue(1)
        self._answers: MixedQueue[tuple[Any, BaseException | None]] = answers

        async def answer() -> None:
            try:
                found = await work()
            except asyncio.CancelledError as error:
                answers.sync_q.put_nowait((None, _dead(error)))
                raise
            except BaseException as error:
                answers.sync_q.put_nowait((None, error))
            else:
                answers.sync_q.put_nowait((found, None))

        def begin() -> None:
            keep_task(asyncio.get_running_loop().create_task(answer()))

        def lose(error: BaseException) -> None:
            answers.sync_q.put_nowait((None, _dead(error)))

        on_background_loop(begin, lose)

    def wait(self) -> T:
        """Wait in a thread."""
        found: T = _opened(self._answers.sync_q.get())
        return found

    async def wait_in_task(self) -> T:
        """Wait in a task.

        **Cancellation**: ends the waiting, not the work.
        """
        found: T = _opened(await self._answers.async_q.get())
        return found


def _opened(answer: tuple[Any, BaseException | None]) -> Any:
    found, error = answer
    if error is not None:
        raise error
    return found


def _dead(cause: BaseException) -> RelayError:
    error = RelayError("the background loop that all streams share has died")
    error.__cause__ = cause
    return error


def refuse_on_background_loop(what: str) -> None:
    """Raise where a thread would wait for itself."""
    loop = running_asyncio_loop()
    if loop is not None and is_background_loop(loop):
        raise PlacementError(
            f"{what} waits for the loop that it was called on: use its asynchronous twin there"
        )


_tasks: set[asyncio.Task[None]] = set()


def keep_task(task: asyncio.Task[None]) -> None:
    """Refer to a task while it goes on; a loop does so weakly."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


class _Command:
    """A script that waits to be sent."""

    __slots__ = ("answer", "arguments", "script", "size")

    def __init__(
        self, script: Script, arguments: Sequence[bytes], answer: asyncio.Future[Any]
    ) -> None:
        self.script = script
        self.arguments = arguments
        self.answer = answer
        self.size = sum(map(len, arguments))


class Link:
    """The connections of one relay, on the background loop; used on that loop only.

    Attributes:
        settings: As given.
        loop: That loop.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._client = settings.client(_SOCKET_TIMEOUT)
        self._encode: Callable[[Any], bytes] = self._client.get_encoder().encode
        self._waiting: list[_Command] = []
        self._batch: list[_Command] = []  # what is under way
        self._sender: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._hashes: dict[str, str] = {}
        self._is_closed = False

    async def close(self) -> None:
        """Close the connection; who waits for an answer gets an error."""
        self._is_closed = True
        if self._sender is not None:
            self._sender.cancel()
        self._fail_all(RelayError("the relay was closed"))
        await self._client.aclose()

    # -- commands ----------------------------------------------------------------------------

    def call(self, script: Script, keys: Sequence[str], *arguments: Any) -> asyncio.Future[Any]:
        """Have a script done with the next pipeline.

        Returns:
            Its answer; a `RelayUnavailableError` if Redis stays away, a `RelayError` if it refuses,
            or if an argument cannot be sent.
        """
        answer: asyncio.Future[Any] = self.loop.create_future()
        if self._is_closed:
            answer.set_exception(RelayError("the relay was closed"))
            return answer
        try:  # here: in a pipeline it would be the error of all that is in there
            sent = [self._encode(part) for part in (len(keys), *keys, *arguments)]
        except Exception as cause:
            error = RelayError(f"the script {script.name!r} cannot be sent: {cause}")
            error.__cause__ = cause
            answer.set_exception(error)
            return answer
        self._waiting.append(_Command(script, sent, answer))
        if self._sender is None:
            self._sender = self.loop.create_task(self._send_all())
            keep_task(self._sender)
        return answer

    async def _send_all(self) -> None:
        try:
            while self._batch or self._waiting:
                self._fill()
                self._batch = await self.persistently(partial(self._send, self._batch))
        except RelayError as error:
            self._fail_all(error)
        except BaseException as error:
            self._fail_all(_dead(error))
            if not isinstance(error, Exception):
                raise
        finally:
            self._sender = None

    def _fail_all(self, error: RelayError) -> None:
        commands = (*self._batch, *self._waiting)
        self._batch, self._waiting = [], []
        for command in commands:
            if not command.answer.done():
                command.answer.set_exception(error)
                command.answer.exception()  # somebody may have gone without it

    def _fill(self) -> None:
        batch = self._batch
        size = sum(command.size for command in batch)
        taken = 0
        for command in self._waiting:
            if len(batch) >= _MOST_COMMANDS or (batch and size + command.size > _MOST_BYTES):
                break
            batch.append(command)
            size += command.size
            taken += 1
        del self._waiting[:taken]

    async def _send(self, batch: list[_Command]) -> list[_Command]:
        """Send a pipeline.  Returns what has to be sent again at once."""
        batch = [command for command in batch if not command.answer.done()]
        pipeline = self._client.pipeline(transaction=False)
        for command in batch:
            pipeline.execute_command("EVALSHA", self._hash_of(command.script), *command.arguments)
        replies = await pipeline.execute(raise_on_error=False)
        again: list[_Command] = []
        unknown: dict[str, Script] = {}
        transient: Exception | None = None
        for command, reply in zip(batch, replies, strict=True):
            if command.answer.done():  # whoever asked has gone meanwhile
                continue
            if isinstance(reply, NoScriptError):
                unknown[command.script.name] = command.script
                again.append(command)
            elif isinstance(reply, ResponseError) and is_transient(reply):
                transient = reply
                again.append(command)
            elif isinstance(reply, Exception):
                error = RelayError(f"Redis refused the script {command.script.name!r}: {reply}")
                error.__cause__ = reply
                command.answer.set_exception(error)
            else:
                command.answer.set_result(reply)
        for script in unknown.values():
            await self._client.script_load(script.code)
        if transient is not None:
            raise transient  # and the batch comes again, but for what was answered
        return again

    def _hash_of(self, script: Script) -> str:
        found = self._hashes.get(script.name)
        if found is None:
            found = hashlib.sha1(script.code.encode(), usedforsecurity=False).hexdigest()
            self._hashes[script.name] = found
        return found

    # -- when the connection is lost -----------------------------------------------------------

    async def persistently(
        self, work: Callable[[], Awaitable[T]], lost: Callable[[], object] | None = None
    ) -> T:
        """Do something again and again, with growing pauses, while Redis is away.

        Args:
            work: What to do.
            lost: Called each time that it has failed.

        Raises:
            RelayUnavailableError: If Redis stays away for longer than ``outage``.
            RelayError: If it refuses the client.
        """
        backoff = EqualJitterBackoff(cap=1.0, base=0.02)
        began: float | None = None
        failures = 0
        while True:
            try:
                return await work()
            except _FINAL as error:
                raise RelayError(f"Redis refuses the connection: {error}") from error
            except (ConnectionError, TimeoutError, OSError, ResponseError) as error:
                if isinstance(error, ResponseError) and not is_transient(error):
                    raise RelayError(f"Redis refused a command: {error}") from error
                failure: Exception = error
            except RedisError as error:
                raise RelayError(f"Redis could not be asked: {error!r}") from error
            if lost is not None:
                lost()
            now = monotonic()
            if began is None:
                began = now
                _logger.info("Redis is out of reach, trying again: %r", failure)
            failures += 1
            pause = backoff.compute(failures)
            if now + pause - began > self.settings.outage:
                raise RelayUnavailableError(
                    f"Redis has been out of reach for {self.settings.outage:g} seconds: {failure!r}"
                ) from failure
            await asyncio.sleep(pause)


def is_transient(error: ResponseError) -> bool:
    """Whether what Redis refuses now it may take in a moment."""
    return isinstance(error, _TRANSIENT) or str(error).startswith(_TRANSIENT_WORDS)


def is_refusal(error: RelayError) -> bool:
    """Whether it is Redis's answer to this one command, and says nothing of others."""
    if isinstance(error, RelayUnavailableError):  # which it has told for all of `outage`
        return False
    return isinstance(error.__cause__, ResponseError)
